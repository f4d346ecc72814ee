"""Converts a checkpoint of ours to NVIDIA's training-file layout (.pth.tar), which NVIDIA's own loader reads."""

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.checks_radio import read_json
from modeling_radio.conversion.opening import check_file_output
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import write_file
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.opening import open_for_export
from modeling_radio.core.settings import Settings
from modeling_radio.eradio_radio import EradioPositionBias
from modeling_radio.nvidia.arguments import check_arguments, check_source
from modeling_radio.nvidia.config import has_one_token, teacher_token_index, token_fields
from modeling_radio.nvidia.eradio import PUBLISHED, published_name
from modeling_radio.nvidia.keys import TrainingFileLayout, training_file_key
from modeling_radio.nvidia.navit import head_arguments, is_navit, navit_arguments
from modeling_radio.nvidia.radio1d import is_radio1d
from modeling_radio.nvidia.recognition import MATTERING
from modeling_radio.nvidia.source import ERADIO_ARGUMENTS, PICKLES
from modeling_radio.presets_radio import mlp_ratio_for


_DINO_STUDENT = "dino_v2_g_student"
# LayerScale of the blocks of RADIO1D and NaViT has the plain name in their training files.
_PLAIN_LAYER_SCALE = re.compile(r"^(base_model\.blocks\.\d+\.ls[12])\.grandma$")
_DTYPE_ARGUMENTS = ("dtype", "amp_dtype")
# The arguments that NVIDIA's loader reads, with their default values.
_DEFAULT_ARGS: dict[str, Any] = {
    "in_chans": None,
    "input_size": None,
    "pretrained": False,
    "num_classes": None,
    "drop": 0.0,
    "drop_path": None,
    "drop_block": None,
    "gp": None,
    "bn_momentum": None,
    "bn_eps": None,
    "torchscript": False,
    "initial_checkpoint": "",
    "model_norm": False,
    "damp": None,
    "amp": True,
    "amp_dtype": "torch.bfloat16",
    "dtype": "torch.float32",
}


def training_file_content(model: RadioModel) -> dict[str, Any]:
    """Return the content of a training file of NVIDIA's for a model.

    Weights that conversion folded stay folded: LayerScale is written as ones where the architecture has it, and the
    arguments turn spectral reparametrization off. All other tensors are the model's own. Arguments that NVIDIA's loader
    does not read say of a network of ours what `radio convert` could not know else: how positions are resized (NVIDIA's
    code aligns no corners), and which blocks are global. A head that reads another token than that of its
    position gets a `token_slot`, which NVIDIA's code reads since 2026.

    Args:
        model: Any of ours; one that came from NVIDIA keeps the arguments of its training file.

    Returns:
        `arch`, `epoch`, `state_dict` and `args`, to be saved with `torch.save`.

    Raises:
        ValueError: If NVIDIA's code has no such architecture, or `nvidia_source` of the configuration is damaged.
    """
    _check_fixed(model.config)
    source = model.config.nvidia_source or {}
    check_source(source, "config.json")
    args = {**_DEFAULT_ARGS, **(source.get("args") or _build_args(model.config))}
    args = _with_tokens(args, model.config)
    check_arguments(args, "config.json")
    args |= {"spectral_reparam": False, "spectral_heads": False}
    args |= {name: _dtype(args[name]) for name in _DTYPE_ARGUMENTS}
    layout = TrainingFileLayout(
        heads=_head_names(args, source.get("heads") or {}),
        backbone="base_model.inner." if args["model"].startswith("dino_v2_") else "base_model.",
    )
    is_elastic = model.config.num_mergings > 0
    has_plain_names = is_elastic or model.config.navit is not None
    state = {
        _PLAIN_LAYER_SCALE.sub(r"\1.gamma", key) if has_plain_names else key: tensor.detach().clone()
        for ours, tensor in model.state_dict().items()
        if (key := training_file_key(ours, layout)) is not None
    }
    if is_elastic:
        state["base_model._iter_count"] = torch.tensor(0)  # of training steps, which NVIDIA's sampling reads
    elif not has_plain_names and (source.get("layer_scale") or args["model"] == _DINO_STUDENT):
        state |= _layer_scale_ones(state, layout.backbone, model.config)
    if model.config.eradio is not None:
        state |= relative_positions(model)
    return {
        "arch": source.get("arch") or args["model"],
        "epoch": source.get("epoch") or 0,
        "state_dict": state,
        "args": argparse.Namespace(**args),
    }


def _with_tokens(args: dict[str, Any], config: RadioConfig) -> dict[str, Any]:
    """Return the arguments with the registers and slots of the model, where they do not imply these.

    Raises:
        ValueError: If they lack an adaptor, imply another summary, or one token for all where the model has more.
    """
    teachers = [teacher["name"] for teacher in args["teachers"]]
    strangers = [adaptor.name for adaptor in config.adaptor_configs if adaptor.name not in teachers]
    if strangers:
        raise ValueError(f"Adaptors {', '.join(strangers)} have no entry in the training arguments' `teachers`.")
    implied = token_fields(args)
    if (implied["num_cls_tokens"], implied["summary_idxs"]) != (config.num_cls_tokens, config.summary_idxs):
        raise ValueError(
            f"`summary_idxs` must be {implied['summary_idxs']} of {implied['num_cls_tokens']} class tokens in a "
            f"training file of these teachers, got {config.summary_idxs} of {config.num_cls_tokens}."
        )
    if implied["num_registers"] != config.num_registers:
        registers = {"cpe_num_registers": config.num_registers, "register_multiple": None}
        if is_radio1d(args) or is_navit(args):
            kwargs = {"num_registers": config.num_registers, "register_multiple": None}
            registers = {"model_kwargs": {**args["model_kwargs"], **kwargs}}
        args = {**args, **registers}
    slots = {
        adaptor.name: adaptor.token_index
        for adaptor in config.adaptor_configs
        if teacher_token_index(args, adaptor.name) != adaptor.token_index
    }
    if slots and has_one_token(args):
        raise ValueError(f"`token_index` must be 0 where all teachers have one class token, got {slots}.")
    # The first entry of a name decides; a slot in all of them contradicts nothing.
    return {
        **args,
        "teachers": [
            {**teacher, "token_slot": slots[teacher["name"]]} if teacher["name"] in slots else teacher
            for teacher in args["teachers"]
        ],
    }


@torch.no_grad()
def relative_positions(model: RadioModel) -> dict[str, Tensor]:
    """Return the buffers of every position MLP under the keys of a training file, for the window of the training.

    Args:
        model: An E-RADIO.

    Returns:
        By key the coordinates that the MLP reads, `(1, 2 * w - 1, 2 * w - 1, 2)`, the index of each pair of tokens
        among them, `(w**2, w**2)`, and zeros for the bias, which NVIDIA's code computes anew in every pass until it is
        frozen.
    """
    buffers: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, EradioPositionBias):
            window = module.trained_window
            heads = len(module.cpb_mlp[-1].weight)  # pyrefly: ignore[bad-argument-type]
            values = {
                "relative_coords_table": module.coordinates(window).unsqueeze(0),
                "relative_position_index": module.index(window),
                "relative_bias": torch.zeros(1, heads, window**2, window**2),
            }
            for buffer, value in values.items():
                key = training_file_key(f"{name}.{buffer}", TrainingFileLayout(heads={}))
                assert key is not None
                buffers[key] = value
    return buffers


def _layer_scale_ones(state: dict[str, Tensor], backbone: str, config: RadioConfig) -> dict[str, Tensor]:
    """Return ones for each LayerScale entry that the state lacks."""
    like = state[f"{backbone}blocks.0.norm1.weight"]
    names = (
        f"{backbone}blocks.{index}.{scale}.grandma"
        for index in range(config.num_hidden_layers)
        for scale in ("ls1", "ls2")
    )
    return {name: torch.ones_like(like) for name in names if name not in state}


def _head_names(args: dict[str, Any], stored: dict[str, str]) -> dict[str, str]:
    """Return by adaptor its name in the file's keys: the stored one, or its teacher's position."""
    positions: dict[str, str] = {}
    for position, teacher in enumerate(args["teachers"]):
        positions.setdefault(teacher["name"], str(position))  # a repeated teacher has its heads under the first entry
    return {**positions, **stored}


def _dtype(value: Any) -> Any:
    """Turn "torch.float32" or "float32" back into the data type that NVIDIA's loader wants."""
    if not isinstance(value, str):
        return value
    dtypes = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    return dtypes.get(value if value.startswith("torch.") else f"torch.{value}", value)


def _check_fixed(config: RadioConfig) -> None:
    """Refuse fields for which NVIDIA's code has no argument: it would compute something else."""
    if config.wrapped is not None:
        raise ValueError(
            "`wrapped` must be None in NVIDIA's code, which has no networks of libraries. See `--to network`."
        )
    for field, fixed in {"hidden_act": "gelu", "layer_norm_eps": 1e-6}.items():
        if config.eradio is None and getattr(config, field) != fixed:
            raise ValueError(f"`{field}` must be {fixed!r} in NVIDIA's code, got {getattr(config, field)!r}.")


def _build_args(config: RadioConfig) -> dict[str, Any]:
    """Return training arguments that describe a network of ours to NVIDIA's loader."""
    per_teacher = config.num_cls_tokens > 1
    adaptors = config.adaptor_configs
    table = config.max_img_size if config.eradio is None and config.navit is None else None
    versions = {adaptor.mlp_version for adaptor in adaptors} or {"v2"}
    return {
        **_architecture_args(config),
        **{name: getattr(config, name) for name in MATTERING},
        "cpe_max_size": table,
        "cls_token_per_teacher": per_teacher,
        "register_multiple": None,
        "cpe_num_registers": config.num_registers,
        "mlp_version": sorted(versions)[-1],
        "mlp_hidden_size": adaptors[0].hidden_size if adaptors else None,
        "mlp_num_inner": adaptors[0].num_inner_blocks if adaptors else 0,
        "teachers": _teachers(config, per_teacher=per_teacher),
    }


def _architecture_args(config: RadioConfig) -> dict[str, Any]:
    if config.num_mergings:
        return radio1d_arguments(config)
    if config.navit is not None:
        return navit_arguments(config)
    if config.eradio is not None:
        name = published_name(config.eradio) or "eradio_custom"
        return {"model": name, "model_kwargs": {"return_full_features": True}}
    if config.use_swiglu_ffn and config.use_final_norm and config.use_patch_bias:
        return {"model": _DINO_STUDENT, "model_kwargs": {}}
    if config.use_swiglu_ffn or config.use_patch_bias:
        raise ValueError("NVIDIA's code has no ViT with SwiGLU or a patch bias other than its DINOv2-shaped g model.")
    if config.patch_size not in (14, 16):
        raise ValueError(f"`patch_size` must be 14 or 16 in NVIDIA's code, got {config.patch_size}.")
    if config.use_layer_scale and config.patch_size != 16:
        raise ValueError("NVIDIA's code has LayerScale in ViTs of patch 16 only.")
    kwargs: dict[str, Any] = {
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio,
    }
    if not config.use_cropped_positions:
        kwargs["img_size"] = config.max_img_size
    if not config.qkv_bias:
        kwargs["qkv_bias"] = False
    variant = "v2_224" if config.use_layer_scale else "224"
    return {
        "model": f"vit_base_patch{config.patch_size}_{variant}",
        "model_kwargs": kwargs,
        "model_norm": config.use_final_norm,
    }


def radio1d_arguments(config: RadioConfig) -> dict[str, Any]:
    """Return the training arguments of a RADIO1D of ours, all of whose sizes are in `model_kwargs`.

    Raises:
        ValueError: If NVIDIA's code has no such network.
    """
    if config.patch_size != 16 or not config.use_cropped_positions or config.use_patch_bias:
        raise ValueError(
            "NVIDIA's RADIO1D has `patch_size` 16, `use_cropped_positions` and no `use_patch_bias`, got "
            f"{config.patch_size}, {config.use_cropped_positions} and {config.use_patch_bias}."
        )
    # There is one ratio for all widths, rounded down at each: the smallest that is large enough for all.
    widths = [config.hidden_size << count for count in range(config.num_mergings + 1)]
    own = [config.merged_intermediate_size(count) for count in range(config.num_mergings + 1)]
    ratio = max(map(mlp_ratio_for, own, widths))
    theirs = [int(width * ratio) for width in widths]
    if own != theirs:
        raise ValueError(
            f"`intermediate_size` and `merged_intermediate_sizes` must be {theirs} in NVIDIA's code, got {own}."
        )
    kwargs = {
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": ratio,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layerscale_value if config.use_layer_scale else None,
        "cpe_max_size": config.max_img_size,
        "img_size": (config.filler_side << config.num_mergings) * config.patch_size,
        "num_cls_tokens": config.num_cls_tokens,
        "num_registers": config.num_registers,
        "downscale_levels": config.downscale_levels,
        "decoder_depth": config.decoder_depth,
        "decoder_upscale_levels": config.splitting_blocks,
        "progressive_reduction": config.progressive_reduction,
    }
    return {"model": "radio1d_large_patch16_224", "model_kwargs": kwargs, "model_norm": config.use_final_norm}


def _teachers(config: RadioConfig, *, per_teacher: bool) -> list[dict[str, Any]]:
    """Return one teacher per class token, in order; a token without an adaptor gets a name of its own."""
    teachers = {
        adaptor["name"]: _teacher(adaptor) | head_arguments(config, adaptor["name"]) for adaptor in config.adaptors
    }
    if not per_teacher:
        return list(teachers.values()) or [{"name": "teacher", "use_summary": True}]
    if len(teachers) > config.num_cls_tokens:
        raise ValueError(
            f"`adaptors` must be no more than the class tokens ({config.num_cls_tokens}) in a training file, got "
            f"{len(teachers)}."
        )
    if list(config.summary_idxs or []) != sorted(config.summary_idxs or []):
        raise ValueError(f"`summary_idxs` must ascend in NVIDIA's code, got {config.summary_idxs}.")
    # Each at the position of its token; where that is taken, at a free one, with a slot.
    entries = {adaptor.token_index: adaptor.name for adaptor in reversed(config.adaptor_configs)}
    waiting = [name for name in teachers if name not in entries.values()]
    for position in range(config.num_cls_tokens):
        if position not in entries and waiting:
            entries[position] = waiting.pop(0)
    summary = config.summary_idxs or []
    if config.navit is not None and config.navit.get("inner_summary_idxs") is not None:
        summary = config.navit["inner_summary_idxs"]
    return [
        teachers.get(entries.get(position, ""), {"name": f"teacher_{position}"}) | {"use_summary": position in summary}
        for position in range(config.num_cls_tokens)
    ]


def _teacher(adaptor: dict[str, Any]) -> dict[str, Any]:
    teacher = {"name": adaptor["name"], "type": adaptor["name"], "use_summary": True}
    teacher["mlp_version"] = adaptor["mlp_version"]
    if adaptor["feature_mlp_version"] not in (None, adaptor["mlp_version"]):
        teacher["spatial_mlp_version"] = adaptor["feature_mlp_version"]
    if adaptor["feature_head"] == "attention":
        if adaptor["feature_num_attention_heads"] != 16 or adaptor["feature_num_blocks"] != 2:
            raise ValueError(f"NVIDIA's attention head has 2 blocks of 16 heads; adaptor {adaptor['name']!r} differs.")
        teacher["spatial_mlp_version"] = "attn"
    if adaptor["upsample_factor"] > 1:
        teacher["fd_upsample_factor"] = adaptor["upsample_factor"]
    return teacher


class ToNvidiaSettings(Settings):
    """Settings of the conversion.

    Attributes:
        checkpoint: Folder with config.json and weights.
        output: File to write, .pth.tar.
        overwrite: Replace the output if it exists.
    """

    checkpoint: ModelFolder
    output: Path
    overwrite: bool = False


COMMAND = Command(
    "radio convert --to nvidia",
    __doc__,
    ToNvidiaSettings,
    positionals=("checkpoint", "output"),
    examples=("radio convert --to nvidia my-folder back.pth.tar",),
)


@one_line_warnings(COMMAND.name)
def _run(settings: ToNvidiaSettings) -> None:
    check_file_output(settings.output, settings.checkpoint, endings=PICKLES, overwrite=settings.overwrite)
    model = open_for_export(settings.checkpoint).backbone
    content = training_file_content(model)
    arguments = None if content["args"].model in PUBLISHED else model.config.eradio
    beside = settings.output.parent / ERADIO_ARGUMENTS
    if arguments is not None and beside.exists() and not settings.overwrite and read_json(beside) != arguments:
        raise ValueError(f"{str(beside)!r} holds the arguments of another E-RADIO. Name an output in another folder.")
    write_file(settings.output, lambda path: torch.save(content, path))
    if arguments is not None:
        write_file(beside, lambda path: path.write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8"))
    print(f"{settings.output}: {content['arch']}, {len(content['state_dict'])} tensors")


main = partial(COMMAND.run, _run, extra="train")


if __name__ == "__main__":
    sys.exit(main())
