"""Maps names of tensors between NVIDIA's training file or Hub folder and our model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


ADAPTOR = "ADAPTOR"
KEY_TABLE = (
    ("input_conditioner.", "radio_model.input_conditioner."),
    ("_feature_normalizer.", "radio_model.feature_normalizer."),
    ("_intermediate_feature_normalizer.", "radio_model.inter_feature_normalizer."),
    (f"_heads.{ADAPTOR}.", f"radio_model.adaptors.{ADAPTOR}.head_mlp."),
    (f"_feature_projections.{ADAPTOR}.", f"radio_model.adaptors.{ADAPTOR}.feat_mlp."),
    ("base_model.inner.", "radio_model.model."),
    ("base_model.", "radio_model.model."),
    ("radio_model.model.inner.", "radio_model.model."),
)
"""Prefixes of keys, NVIDIA's and ours, used in both directions. `ADAPTOR` stands for an adaptor's name; in NVIDIA's
files also for the position of its teacher. The layout of a file decides which of the backbone's three names it has."""

DROPPED_KEYS: dict[str, str] = {
    r"(base_model|radio_model\.model)\.(inner\.)?mask_token": "DINOv2's token for masked training",
    r"(base_model|radio_model\.model)\.(inner\.)?reg_token": "timm's registers; those of the patch generator are used",
    r"(base_model|radio_model\.model)\.input_conditioner\.(norm_mean|norm_std)": "the architecture's own constants; "
    "the top-level ones are used",
    r"(base_model|radio_model\.model)\._iter_count": "RADIO1D's counter of training steps",
    r"(base_model|radio_model\.model)\.dynamic_rate_(vec|projector\..+)": "chose RADIO1D's tokens in training",
    r"(base_model|radio_model\.model)\.levels\..*\.pos_emb_funct\.relative_\w+": "inputs of E-RADIO's positions",
}
"""Tensors that published files hold and no reader uses: pattern of the key, and the reason."""

_HEAD = re.compile(r"(?:_heads|_feature_projections)\.([^.]+)\.")
_ADAPTOR = re.compile(r"radio_model\.adaptors\.([^.]+)\.")
# transformers renames `gamma` when it loads, so NVIDIA's backbones and we say `grandma`; NVIDIA's heads do not.
_GAMMA = re.compile(r"(?<=\.ls[12]\.)gamma$|(?<=_attn_ls\.)gamma$|(?<=mlp_ls\.)gamma$")
_GRANDMA = re.compile(_GAMMA.pattern.replace("gamma", "grandma"))


@dataclass(frozen=True)
class TrainingFileLayout:
    """Names in a training file that do not follow from our model.

    Attributes:
        heads: By adaptor name, the part of the key that stands for it: its teacher's position, or its name.
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
        Our key for each key that is used. Keys in `DROPPED_KEYS` are absent. Unknown keys map to keys that no model
        has; the caller refuses those.
    """
    names = {str(position): name for position, name in enumerate(teachers)}
    mapping = {}
    for key in keys:
        bare = key.removeprefix("module.")  # of data-parallel wrappers
        if not _is_dropped(bare, teachers):
            mapping[key] = _GAMMA.sub("grandma", _translate(bare, KEY_TABLE, names) or bare)
    return mapping


def _translate(key: str, table: Iterable[tuple[str, str]], names: Mapping[str, str]) -> str | None:
    """Return a key with the prefix of the other side of the table; `None` where the table lacks it.

    `names` maps an adaptor's name on this side to its name on the other.
    """
    for given, wanted in table:
        if match := re.match(re.escape(given).replace(ADAPTOR, r"([^.]+)"), key):
            adaptor = match[1] if match.groups() else ""
            return wanted.replace(ADAPTOR, names.get(adaptor, adaptor)) + key[match.end() :]
    return None


def _is_dropped(key: str, teachers: Sequence[str]) -> bool:
    if any(re.fullmatch(pattern, key) for pattern in DROPPED_KEYS):
        return True
    head = _HEAD.match(key)
    if head is None or not _is_position(head[1], teachers):
        return False
    # A teacher of several training partitions has its adaptor under its first entry; NVIDIA's loader reads that one.
    position = int(head[1])
    return teachers[position] in teachers[:position]


def _is_position(text: str, teachers: Sequence[str]) -> bool:
    return text.isdecimal() and int(text) < len(teachers)


def training_file_key(key: str, layout: TrainingFileLayout) -> str | None:
    """Map a key of our model to that of a training file.

    Returns:
        The key, or `None` for the summary's indices: a training file has them in its arguments.
    """
    if key == "radio_model.summary_idxs":
        return None
    table = [(ours, nvidia) for nvidia, ours in KEY_TABLE if ours != "radio_model.model." or nvidia == layout.backbone]
    theirs = _translate(key, table, layout.heads)
    assert theirs is not None, f"no name in NVIDIA's training files for {key}"
    return _GRANDMA.sub("gamma", theirs) if _HEAD.match(theirs) else theirs


def adaptor_of(key: str) -> str | None:
    """Return the adaptor that one of our keys belongs to."""
    match = _ADAPTOR.match(key)
    return match[1] if match else None


def head_names(keys: Iterable[str], teachers: Sequence[str]) -> dict[str, str]:
    """Return how a training file's keys name each adaptor: by position in `teachers`, or by name."""
    found = (_HEAD.match(key.removeprefix("module.")) for key in keys)
    names = {match[1] for match in found if match is not None and not _is_dropped(match.string, teachers)}
    return {teachers[int(name)] if _is_position(name, teachers) else name: name for name in sorted(names)}
