"""Puts a RADIO into a Nemotron as its vision tower; the language model and all other files stay as they are.

The tower is written as the Nemotron's own file has it: its names, data types and LayerScale. Adaptors and heads stay
behind. Width, patch size, depth, heads and normalization of images must be those of the tower that it replaces; class
tokens, registers and the table of positions may differ, and `config.json` then says so.
"""

import json
import math
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, ones
from transformers.models.radio import RadioConfig as NativeConfig

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.checks_radio import read_json
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import FolderKind, check_output, write_folder
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.opening import open_for_export
from modeling_radio.core.settings import Settings
from modeling_radio.core.trust import allowed_files
from modeling_radio.engines import EngineVerdict, engine_verdicts
from modeling_radio.modeling_radio import ADAPTORS, PATCH_GENERATOR, PREFIX_TOKENS, SUMMARY_INDICES
from modeling_radio.nvidia.config import token_fields
from modeling_radio.nvidia.nemotron import check_nemotron, files_of_tower, is_nemotron, place_of, read_tower
from modeling_radio.nvidia.stored_tensors import (
    INDEX,
    StoredTensor,
    changed_index,
    stored_tensors,
    weight_files,
)
from modeling_radio.nvidia.tensors import fold_layer_scale, has_layer_scale


NEMOTRON_FOLDER = FolderKind(
    "folders of Nemotrons",
    ("*.json", "*.safetensors", "*.py", "*.md", "*.txt", "*.jinja", "*.model", "LICENSE*", "NOTICE*", "__pycache__"),
    is_nemotron,
)
"""The only kind of folder that the command may replace."""

_SAME = (
    *("hidden_size", "patch_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"),
    *("hidden_act", "layer_norm_eps", "use_swiglu_ffn", "qkv_bias", "use_patch_bias", "use_final_norm"),
    *("use_feature_normalizer", "downscale_levels", "eradio", "wrapped", "navit", "norm_mean", "norm_std"),
)
"""Fields in which a tower must agree with the one that it replaces."""
_LEFT_OUT = (
    *("radio_model.input_conditioner.", "radio_model.inter_feature_normalizer.", f"{ADAPTORS}.", SUMMARY_INDICES),
    f"{PATCH_GENERATOR}.video_embedder.",
)
"""Beginnings of our keys that a Nemotron need not have."""
_SCALES = (".ls1.grandma", ".ls2.grandma")
_NORMALIZATION = 1e-3  # relative: means and deviations may have been stored in bfloat16


class Composite(NamedTuple):
    """A Nemotron, as far as a tower is put into it.

    Attributes:
        folder: Its folder.
        config: Its `config.json`, parsed.
        tensors: Where each tensor of the files with the tower lies, by name.
        tower: Configuration of its tower.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    tower: RadioConfig

    @property
    def has_layer_scale(self) -> bool:
        """Whether its tower has LayerScale."""
        return self.tower.use_layer_scale


def open_composite(folder: Path) -> Composite:
    """Open a Nemotron.

    Raises:
        ValueError: If it is none, lacks a file or is damaged.
    """
    check_nemotron(folder, "nemotron")
    touched, tensors = files_of_tower(folder), stored_tensors(folder, files=weight_files(folder))
    return Composite(
        folder,
        read_json(folder / "config.json"),
        {name: tensor for name, tensor in tensors.items() if tensor.file.name in touched},
        read_tower(folder, str(folder)).config,
    )


def tower_weights(model: RadioModel, composite: Composite, *, folds: bool) -> dict[str, Tensor]:
    """Return a model's weights by name of the Nemotron's tensors, in its data types.

    Args:
        model: Any RADIO.
        composite: The Nemotron.
        folds: Whether LayerScale is folded into the linear layers; the result has none then.

    Raises:
        ValueError: If the model differs in more than tokens and positions, has LayerScale that the Nemotron lacks, or
            lacks a tensor that it has.
    """
    _check_same(model.config, composite.tower)
    state = dict(model.state_dict())
    if folds:
        state = fold_layer_scale(state)
    elif has_layer_scale(state) and not composite.has_layer_scale:
        raise ValueError(
            "`checkpoint` has LayerScale, which this Nemotron's tower has not: --fold-layer-scale folds it into the "
            "linear layers."
        )
    places = {name: place for name in composite.tensors if (place := place_of(name)) is not None}
    if folds:
        places = {name: place for name, place in places.items() if not place.key.endswith(_SCALES)}
    elif composite.has_layer_scale and not has_layer_scale(state):
        like = state[PREFIX_TOKENS][0]
        state |= {place.key: ones(like.shape) for place in places.values() if place.key.endswith(_SCALES)}
    wanted = {place.key for place in places.values()}
    missing = sorted(wanted - state.keys())
    unknown = sorted(key for key in state.keys() - wanted if not key.startswith(_LEFT_OUT))
    if missing or unknown:
        raise ValueError(f"`checkpoint` does not fit this Nemotron: it lacks {missing}, and has {unknown} beside.")
    weights = {}
    for name, place in places.items():
        tensor = state[place.key] if place.third is None else state[place.key].chunk(3)[place.third]
        weights[name] = tensor
    return weights


def _check_same(ours: RadioConfig, theirs: RadioConfig) -> None:
    others, names = [], list(_SAME)
    if theirs.video_temporal_patch_size is not None:
        names.append("video_temporal_patch_size")
    for name in names:
        own, given = getattr(ours, name), getattr(theirs, name)
        if name in ("norm_mean", "norm_std"):
            same = len(own) == len(given) and all(map(partial(math.isclose, rel_tol=_NORMALIZATION), own, given))
        else:
            same = own == given
        if not same:
            others.append(f"{name} is {own}, not {given}")
    if others:
        raise ValueError(f"`checkpoint` is no tower for this Nemotron: {'; '.join(others)}.")


def changed_config(config: Mapping[str, Any], tower: RadioConfig) -> dict[str, Any]:
    """Return a Nemotron's `config.json` with the tokens and positions of another tower.

    Engines read the number of registers as `register_multiple - classes % register_multiple`.
    """
    vision, args = config["vision_config"], config["vision_config"].get("args")
    if not isinstance(args, dict):
        own = ("num_cls_tokens", "num_registers", "summary_idxs", "max_img_size")
        return {**config, "vision_config": {**vision, **{name: _plain(getattr(tower, name)) for name in own}}}
    args = {**args, "cpe_max_size": tower.max_img_size}
    if token_fields(args, of_hub_folder=True)["num_cls_tokens"] != tower.num_cls_tokens:
        summary = tower.summary_idxs or []
        args["teachers"] = [
            {"name": f"teacher_{index}", "use_summary": index in summary} for index in range(tower.num_cls_tokens)
        ]
        args["cls_token_per_teacher"] = True
    multiple = args.get("register_multiple") or 0
    if (multiple - tower.num_cls_tokens % multiple if multiple else 0) != tower.num_registers:
        args["register_multiple"] = tower.num_prefix_tokens if tower.num_registers else None
    if args.get("cpe_num_registers"):
        args["cpe_num_registers"] = tower.num_registers
    return {**config, "vision_config": {**vision, "args": args}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def write_composite(composite: Composite, weights: Mapping[str, Tensor], tower: RadioConfig, folder: Path) -> None:
    """Write a Nemotron with other weights of its tower into a folder that exists.

    Files without tensors of the tower are copied byte for byte, and tensors of the language model bit for bit. Hidden
    folders, such as `.git`, are left out.

    Args:
        composite: The Nemotron.
        weights: Tensors by name, in any data type of floating-point numbers; of its own tower's tensors, those that are
            left out are dropped.
        tower: Configuration of the new tower.
        folder: Folder to fill.
    """
    dropped = {name for name in composite.tensors if place_of(name) and name not in weights}
    touched = {tensor.file.name for tensor in composite.tensors.values()}
    for name, path in allowed_files(composite.folder).items():
        if name not in touched and not _is_hidden(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    for name in sorted(touched):
        _write_shard(composite.folder / name, weights, dropped, folder / name)
    _replace_json(folder / "config.json", changed_config(composite.config, tower))
    if (folder / INDEX).is_file():
        after = stored_tensors(folder, files=touched)
        _replace_json(folder / INDEX, changed_index(read_json(folder / INDEX), composite.tensors, after))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")[:-1])


def _write_shard(source: Path, weights: Mapping[str, Tensor], dropped: set[str], path: Path) -> None:
    with safe_open(source, framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if name not in dropped}  # noqa: SIM118
        new = {name: weights[name].to(tensor.dtype).contiguous() for name, tensor in kept.items() if name in weights}
        save_file({**kept, **new}, path, metadata=file.metadata())


def _replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file anew where its content changes; else it stays byte for byte."""
    if content != read_json(path):
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verdicts_in(config: RadioConfig, composite: Composite, *, folds: bool) -> list[EngineVerdict]:
    """Return what engines do with a tower in a Nemotron.

    Raises:
        ValueError: If none loads it; the message has all reasons.
    """
    values = {**config.to_dict(), "use_layer_scale": composite.has_layer_scale and not folds}
    by_transformers = dict(values)
    if composite.tower.use_final_norm:
        by_transformers["use_final_norm"] = False  # its class of Nemotrons has it
    if any(name.endswith(".lambda1") for name in composite.tensors):
        by_transformers["use_layer_scale"] = False  # whose names these are
    verdicts = engine_verdicts(RadioConfig.from_dict(values))
    verdicts[0] = _in_nemotron(engine_verdicts(RadioConfig.from_dict(by_transformers))[0], config, composite)
    if all(verdict.stops for verdict in verdicts):
        raise ValueError(f"No engine holds this tower. {'. '.join(verdict.line for verdict in verdicts)}.")
    return verdicts


def _in_nemotron(verdict: EngineVerdict, config: RadioConfig, composite: Composite) -> EngineVerdict:
    """Return what transformers does, which reads no training arguments: without its own fields it has C-RADIOv4-H's."""
    defaults = NativeConfig()
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_cls_tokens",
        "num_registers",
        "max_img_size",
    )
    others = [name for name in names if getattr(config, name) != getattr(defaults, name)]
    if "args" not in composite.config["vision_config"] or not others:
        return verdict
    return verdict._replace(stops=[f"{', '.join(others)} of another network than C-RADIOv4-H, and no fields for them"])


class ToNemotronSettings(Settings):
    """Settings of the conversion.

    Attributes:
        checkpoint: Folder of a RADIO, such as a tower that was taken out and tuned.
        nemotron: Folder of the Nemotron.
        output: Folder to write: a copy of the Nemotron with this tower.
        fold_layer_scale: Fold the LayerScale of `checkpoint` into its linear layers; the Nemotron's tower then has
            none.
        overwrite: Replace the output if it exists.
    """

    checkpoint: ModelFolder
    nemotron: Path
    output: Path
    fold_layer_scale: bool = False
    overwrite: bool = False


COMMAND = Command(
    "radio convert --to nemotron",
    __doc__,
    ToNemotronSettings,
    positionals=("checkpoint", "nemotron", "output"),
    examples=("radio convert --to nemotron tuned-tower nemotron-folder tuned-nemotron",),
)


@one_line_warnings(COMMAND.name)
def _run(settings: ToNemotronSettings) -> None:
    inputs = [settings.checkpoint, settings.nemotron]
    check_output(settings.output, overwrite=settings.overwrite, inputs=inputs, kind=NEMOTRON_FOLDER)
    composite, model = open_composite(settings.nemotron), open_for_export(settings.checkpoint).backbone
    folds = settings.fold_layer_scale
    weights = tower_weights(model, composite, folds=folds)
    verdicts = verdicts_in(model.config, composite, folds=folds)
    _check_space(settings.nemotron, settings.output)
    write_folder(
        settings.output,
        lambda folder: write_composite(composite, weights, model.config, folder),
        overwrite=settings.overwrite,
    )
    print(f"{settings.output}: {len(weights)} tensors of the tower are replaced, all others are the Nemotron's")
    for verdict in verdicts:
        print(verdict.line)


def _check_space(source: Path, output: Path) -> None:
    needed = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    free = shutil.disk_usage(next(parent for parent in output.absolute().parents if parent.exists())).free
    if needed > free:
        raise ValueError(
            f"`output` needs {needed:,} bytes on the disk of {str(output)!r}, which has {free:,} left. Name another."
        )


main = partial(COMMAND.run, _run, extra="train")


if __name__ == "__main__":
    sys.exit(main())
