"""Names of tensors: NVIDIA's training file and Hub folder on one side, our model on the other."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


HEADS = {"_heads": "head_mlp", "_feature_projections": "feat_mlp"}
"""NVIDIA's name of each half of an adaptor in a training file, and the one in a model."""

DROPPED_KEYS: dict[str, str] = {
    r"(base_model|radio_model\.model)\.(inner\.)?mask_token": "DINOv2's token for masked training",
    r"(base_model|radio_model\.model)\.(inner\.)?reg_token": "timm's registers; those of the patch generator are used",
    r"(base_model|radio_model\.model)\.input_conditioner\.(norm_mean|norm_std)": "the architecture's own constants; "
    "the top-level ones are used",
}
"""Tensors that published files hold and no reader uses: pattern of the key, and why."""

_BACKBONE = re.compile(r"(?:base_model|radio_model\.model)\.(?:inner\.)?((?:blocks|patch_generator|norm)\..+)")
_HEAD = re.compile(r"(_heads|_feature_projections)\.([^.]+)\.(.+)")
_MOVED = {
    "input_conditioner.": "radio_model.input_conditioner.",
    "_feature_normalizer.": "radio_model.feature_normalizer.",
    "_intermediate_feature_normalizer.": "radio_model.inter_feature_normalizer.",
}
_BACK = {ours: nvidia for nvidia, ours in _MOVED.items()}
_ADAPTOR = re.compile(r"radio_model\.adaptors\.([^.]+)\.(head_mlp|feat_mlp)\.(.+)")


@dataclass(frozen=True)
class TrainingFileLayout:
    """How a training file names things that our model does not tell.

    Attributes:
        heads: The part of the key that stands for an adaptor, by adaptor name: its teacher's position, or its name.
        backbone: Prefix of the backbone: "base_model.", or "base_model.inner." for the DINOv2-shaped models.
    """

    heads: Mapping[str, str]
    backbone: str = "base_model."


def our_keys(keys: Iterable[str], teachers: Sequence[str]) -> dict[str, str]:
    """Map the keys of a file of NVIDIA's to those of our model.

    Args:
        keys: Keys of a training file or Hub folder.
        teachers: The name of every entry of the training arguments' `teachers`, repetitions included: heads may be
            named by position in this list.

    Returns:
        Our key for each key that is used. Keys in `DROPPED_KEYS` are absent. Unknown keys map to themselves, so that
        they can be refused by name.
    """
    mapping = {}
    for key in keys:
        bare = key.removeprefix("module.")  # of data-parallel wrappers
        if not _is_dropped(bare, teachers):
            mapping[key] = _our_key(bare, teachers)
    return mapping


def _is_dropped(key: str, teachers: Sequence[str]) -> bool:
    if any(re.fullmatch(pattern, key) for pattern in DROPPED_KEYS):
        return True
    head = _HEAD.fullmatch(key)
    if head is None or not _is_position(head[2], teachers):
        return False
    # A teacher of several training partitions has its adaptor under its first entry; NVIDIA's loader reads that one.
    position = int(head[2])
    return teachers[position] in teachers[:position]


def _our_key(key: str, teachers: Sequence[str]) -> str:
    if backbone := _BACKBONE.fullmatch(key):
        key = f"radio_model.model.{backbone[1]}"
    elif head := _HEAD.fullmatch(key):
        name = teachers[int(head[2])] if _is_position(head[2], teachers) else head[2]
        key = f"radio_model.adaptors.{name}.{HEADS[head[1]]}.{head[3]}"
    for nvidia, ours in _MOVED.items():
        if key.startswith(nvidia):
            key = ours + key.removeprefix(nvidia)
    # The Hub's loader renames `gamma`, so NVIDIA's backbones call it `grandma`; the heads are plain timm blocks.
    return re.sub(r"(\.ls[12])\.gamma$", r"\1.grandma", key)


def _is_position(text: str, teachers: Sequence[str]) -> bool:
    return text.isdecimal() and int(text) < len(teachers)


def training_file_key(key: str, layout: TrainingFileLayout) -> str | None:
    """Map a key of our model to that of a training file.

    Returns:
        The key, or `None` for the summary's indices: a training file has them in its arguments.
    """
    if key == "radio_model.summary_idxs":
        return None
    if key.startswith("radio_model.model."):
        return layout.backbone + key.removeprefix("radio_model.model.")
    if adaptor := _ADAPTOR.fullmatch(key):
        kind = next(nvidia for nvidia, ours in HEADS.items() if ours == adaptor[2])
        inner = re.sub(r"(\.ls[12])\.grandma$", r"\1.gamma", adaptor[3])
        return f"{kind}.{layout.heads[adaptor[1]]}.{inner}"
    for ours, nvidia in _BACK.items():
        if key.startswith(ours):
            return nvidia + key.removeprefix(ours)
    raise AssertionError(f"no name in NVIDIA's training files for {key}")


def adaptor_of(key: str) -> str | None:
    """Return the adaptor that one of our keys belongs to."""
    match = _ADAPTOR.fullmatch(key)
    return match[1] if match else None


def head_names(keys: Iterable[str], teachers: Sequence[str]) -> dict[str, str]:
    """Return how a training file's keys name each adaptor: by position in `teachers`, or by name."""
    found = (_HEAD.fullmatch(key.removeprefix("module.")) for key in keys)
    names = {match[2] for match in found if match is not None and not _is_dropped(match[0], teachers)}
    return {teachers[int(name)] if _is_position(name, teachers) else name: name for name in sorted(names)}
