"""Start of a student from a plain ViT of transformers or timm, which is opened, read by name and fitted to it."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.hub import explain_failure
from modeling_radio.layers_radio import resize_position_table
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.student.warm_start.radio import WarmStart, check_blocks
from modeling_radio.training.teachers.base import HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD


Block = dict[str, Tensor]
"""Weights of one block under the names of `RadioBlock`; biases that the source lacks are missing."""


@dataclass
class VitTrunk:
    """Weights and settings of a plain ViT, for `fit_vit`.

    Attributes:
        name: Its class, for messages.
        patch: Patch projection, `(hidden, channels, patch, patch)`.
        patch_bias: Bias of the patch projection, `(hidden,)`; zeros for none.
        class_token: `(hidden,)`, with its position added; None for none.
        registers: `(count, hidden)`.
        positions: Table of positions, `(rows, cols, hidden)`; None if it has none, or rotates queries and keys.
        blocks: Blocks in their order.
        final_norm: `weight` and `bias` of the norm after the last block; None for none.
        num_heads: Attention heads of each block.
        hidden_act: Activation of the MLP, by its name in transformers; ignored if the MLP is gated.
        layer_norm_eps: Epsilon of the blocks' norms.
        mean: Mean of the pixels in [0, 1] that it expects, per channel.
        std: Their deviation, per channel.
        left_out: Parts without a counterpart in RADIO, in a few words each.
    """

    name: str
    patch: Tensor
    patch_bias: Tensor
    class_token: Tensor | None
    registers: Tensor
    positions: Tensor | None
    blocks: list[Block]
    final_norm: dict[str, Tensor] | None
    num_heads: int
    hidden_act: str
    layer_norm_eps: float
    mean: list[float]
    std: list[float]
    left_out: list[str]

    @property
    def is_gated(self) -> bool:
        """True if the MLP is SwiGLU."""
        return "mlp.w12.weight" in self.blocks[0]

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP; of a gated one after its gate."""
        return self.blocks[0]["mlp.w3.weight" if self.is_gated else "mlp.fc2.weight"].shape[1]


class UnknownTrunkError(ValueError):
    """A ViT that RADIO's trunk cannot represent; the message is one line."""


TRANSFORMERS_MODELS = {
    "vit": "ViTModel",
    "vit_mae": "ViTMAEModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}
"""Class by the model type of a checkpoint."""
NORMALIZATIONS = {
    "ViTModel": (HALF_MEAN, HALF_STD),
    "SiglipVisionModel": (HALF_MEAN, HALF_STD),
    "Siglip2VisionModel": (HALF_MEAN, HALF_STD),
}
"""Mean and deviation that the published checkpoints of a class expect, if they are not ImageNet's. A checkpoint without
`preprocessor_config.json` is taken to be like these."""
NO_TABLE = "rotary positions, which RADIO's attention has not"


def open_vit(source: str) -> VitTrunk | None:
    """Open a checkpoint of transformers or timm, by Hub id or from a folder.

    Args:
        source: Name such as `facebook/dinov2-with-registers-base` or `timm:vit_small_patch16_dinov3.lvd1689m`.

    Returns:
        Its trunk; None if `config.json` cannot be read or names another kind of model.

    Raises:
        UnknownTrunkError: If it does not load, or is a ViT that RADIO's trunk cannot represent.
    """
    library, _, name = source.partition(":")
    source = name if library == "transformers" else source
    config = {"architecture": name} if library == "timm" else _read_json(source, "config.json")
    if config is None:
        return None
    class_name = TRANSFORMERS_MODELS.get(config.get("model_type", ""))
    try:
        if "architecture" in config:
            return _open_timm(source)
        return None if class_name is None else _open_transformers(source, class_name)
    except UnknownTrunkError:
        raise
    except Exception as error:  # a library may raise anything for a damaged or foreign checkpoint
        raise UnknownTrunkError(f"it does not load: {explain_failure(error, source).rstrip('.')}") from error


def vit_of(network: Any, mean: Any = None, std: Any = None) -> VitTrunk:
    """Return the trunk of a network of transformers or timm.

    Args:
        network: Network of a class in `TRANSFORMERS_MODELS`, or timm's VisionTransformer or Eva; possibly cut short.
        mean: Mean of the pixels in [0, 1] that it expects; None for that of its class's published checkpoints.
        std: Their deviation, or None.

    Raises:
        UnknownTrunkError: If it is another class, or has a part that RADIO's trunk lacks.
    """
    name, module = type(network).__name__, type(network).__module__
    if module.startswith("transformers.") and name in TRANSFORMERS_MODELS.values():
        default_mean, default_std = NORMALIZATIONS.get(name, (IMAGENET_MEAN, IMAGENET_STD))
        return _of_transformers(network, mean or default_mean, std or default_std)
    if module.startswith("timm.") and name in ("VisionTransformer", "Eva"):
        return _of_timm(network, mean or network.pretrained_cfg["mean"], std or network.pretrained_cfg["std"])
    known = sorted({*TRANSFORMERS_MODELS.values(), "timm's VisionTransformer", "timm's Eva"})
    raise UnknownTrunkError(f"it is a {name}, and must be one of {', '.join(known)}")


def _of_transformers(network: Any, mean: Any, std: Any) -> VitTrunk:
    config, name = network.config, type(network).__name__
    is_dinov2_gated = getattr(config, "use_swiglu_ffn", False)  # whatever `hidden_act` says
    weights, left_out = _read_weights(network.state_dict(), num_prefix_positions=int(not name.startswith("Siglip")))
    return VitTrunk(
        name=f"{name} of transformers",
        **weights,
        num_heads=config.num_attention_heads,
        hidden_act="silu" if is_dinov2_gated else config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        mean=list(mean),
        std=list(std),
        left_out=[*([NO_TABLE] if name == "DINOv3ViTModel" else []), *left_out],
    )


def _of_timm(network: Any, mean: Any, std: Any) -> VitTrunk:
    from timm.models.eva import EvaBlock
    from timm.models.vision_transformer import Block

    first = network.blocks[0]
    if any(type(block) not in (Block, EvaBlock) for block in network.blocks):
        raise UnknownTrunkError(f"its blocks are {type(first).__name__}, and must be ordinary pre-norm ones")
    if getattr(first.mlp, "gate_last", False):
        raise UnknownTrunkError("its MLP has the gate behind the value")
    weights, left_out = _read_weights(
        network.state_dict(),
        num_prefix_positions=0 if network.no_embed_class else network.num_prefix_tokens,
        grid=tuple(network.patch_embed.grid_size) if network.pos_embed is not None else None,
    )
    return VitTrunk(
        name=f"{type(network).__name__} of timm",
        **weights,
        num_heads=first.attn.num_heads,
        hidden_act=_activation(first.mlp.act),
        layer_norm_eps=first.norm1.eps,
        mean=list(mean),
        std=list(std),
        left_out=[*([NO_TABLE] if getattr(network, "rope", None) is not None else []), *left_out],
    )


def _activation(module: nn.Module) -> str:
    """Return the name in transformers of an activation of timm."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    names = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
    name = type(module).__name__
    if name not in names:
        raise UnknownTrunkError(f"its activation {name} has no name in transformers")
    return names[name]


def _open_transformers(source: str, class_name: str) -> VitTrunk:
    import transformers

    model_class = getattr(transformers, class_name)
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    arguments = {"add_pooling_layer": False} if class_name == "ViTModel" else {}
    network, report = model_class.from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True, **arguments
    )
    problems = [*sorted(report["missing_keys"]), *sorted(map(str, report["mismatched_keys"]))]
    if problems:
        raise UnknownTrunkError(
            f"{len(problems)} of its weights are missing or of another shape, such as {problems[0]!r}"
        )
    processor = _read_json(source, "preprocessor_config.json")
    if processor is None:
        return vit_of(network)
    return vit_of(network, *_normalization(processor, network.config.num_channels))


def _normalization(processor: Mapping[str, Any], channels: int) -> tuple[Any, Any]:
    if processor.get("do_normalize", True) is False:
        return [0.0] * channels, [1.0] * channels
    return processor.get("image_mean"), processor.get("image_std")


def _open_timm(source: str) -> VitTrunk:
    import timm

    if source.startswith("timm:"):
        return vit_of(timm.create_model(source.removeprefix("timm:"), pretrained=True))
    scheme = "local-dir" if Path(source).is_dir() else "hf-hub"
    return vit_of(timm.create_model(f"{scheme}:{source}", pretrained=True))


def _read_json(source: str, name: str) -> dict[str, Any] | None:
    """Return a file of a checkpoint; None if there is none, or it is no JSON object."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(source, name)
        content = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


_BLOCK = re.compile(r"(?:encoder\.|model\.)?(?:layers?|blocks)\.(\d+)\.(.+)")
_ATTENTION = r"(?:attention|self_attn|attn)"
_IN_BLOCK = {
    "norm1": r"norm1|layernorm_before|layer_norm1",
    "norm2": r"norm2|layernorm_after|layer_norm2",
    "attn.qkv": r"attn\.qkv",
    "attn.q": rf"attention\.attention\.query|{_ATTENTION}\.q_proj",
    "attn.k": rf"attention\.attention\.key|{_ATTENTION}\.k_proj",
    "attn.v": rf"attention\.attention\.value|{_ATTENTION}\.v_proj",
    "attn.proj": rf"attention\.output\.dense|{_ATTENTION}\.(?:o_proj|out_proj|proj)",
    "mlp.fc1": r"mlp\.fc1|intermediate\.dense",
    "mlp.fc2": r"mlp\.fc2|output\.dense|mlp\.down_proj",
    "mlp.w12": r"mlp\.weights_in",
    "mlp.w3": r"mlp\.weights_out",
    "mlp.gate": r"mlp\.gate_proj|mlp\.fc1_g",
    "mlp.value": r"mlp\.up_proj|mlp\.fc1_x",
}
_PARAMETERS_IN_BLOCK = {
    "ls1.grandma": r"layer_scale1\.lambda1|ls1\.gamma|gamma_1",
    "ls2.grandma": r"layer_scale2\.lambda1|ls2\.gamma|gamma_2",
    "attn.q.bias": r"attn\.q_bias",
    "attn.k.bias": r"attn\.k_bias",
    "attn.v.bias": r"attn\.v_bias",
}
_OUTSIDE = {
    "patch": r"embeddings\.patch_embeddings?(?:\.projection)?|patch_embed\.proj",
    "norm": r"norm|layernorm|post_layernorm",
}
_PARAMETERS_OUTSIDE = {
    "class_token": r"(?:embeddings\.)?cls_token",
    "registers": r"embeddings\.register_tokens|reg_token",
    "positions": r"embeddings\.position_embeddings|embeddings\.position_embedding\.weight|pos_embed",
}
_BEFORE_BLOCKS = re.compile(r"(?:norm_pre|pre_layrnorm|pre_layernorm|patch_embed|embeddings)\..*")
_WITHOUT_EFFECT = re.compile(r"(?:embeddings\.)?mask_token|embeddings\.position_ids")


def _read_weights(
    state: Mapping[str, Tensor], num_prefix_positions: int, grid: tuple[int, int] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the weights of a ViT for a `VitTrunk`, in float32, and a note of those behind the blocks.

    Args:
        state: Its weights, under the names of transformers' or timm's plain ViTs.
        num_prefix_positions: Entries of its position table for class token and registers.
        grid: Rows and columns of the other entries; None for a square.

    Raises:
        UnknownTrunkError: If a weight changes the tokens and RADIO's trunk has no counterpart.
    """
    blocks: dict[int, Block] = defaultdict(dict)
    outside: dict[str, Tensor] = {}
    others: list[str] = []
    for full_key, tensor in state.items():
        key = full_key.removeprefix("vision_model.")
        if (match := _BLOCK.fullmatch(key)) is not None:
            own = _rename(match[2], _IN_BLOCK, _PARAMETERS_IN_BLOCK)
            if own is None:
                raise UnknownTrunkError(f"its blocks have a weight that RADIO's have no place for, {full_key!r}")
            blocks[int(match[1])][own] = tensor.detach().float().cpu()
        elif (own := _rename(key, _OUTSIDE, _PARAMETERS_OUTSIDE)) is not None:
            outside[own] = tensor.detach().float().cpu()
        elif _WITHOUT_EFFECT.fullmatch(key) is None:
            if _BEFORE_BLOCKS.fullmatch(key):
                raise UnknownTrunkError(f"it has a layer before the first block, {full_key!r}, and RADIO has none")
            others.append(key)
    if not blocks or "patch.weight" not in outside:
        raise UnknownTrunkError("it has no blocks or no patch projection under the names of a plain ViT")
    patch = _as_kernel(outside["patch.weight"])
    width = len(patch)
    class_token, registers, positions = _tokens(outside, width, num_prefix_positions, grid)
    heads = sorted({key.split(".")[0] for key in others})
    weights = {
        "patch": patch,
        "patch_bias": outside.get("patch.bias", torch.zeros(width)),
        "class_token": class_token,
        "registers": registers,
        "positions": positions,
        "blocks": [_joined(blocks[index]) for index in sorted(blocks)],
        "final_norm": {part: outside[f"norm.{part}"] for part in ("weight", "bias")}
        if "norm.weight" in outside
        else None,
    }
    return weights, [f"weights behind the blocks ({', '.join(heads)})"] if heads else []


def _rename(key: str, layers: Mapping[str, str], parameters: Mapping[str, str]) -> str | None:
    """Return our name of a weight, either a layer's `weight` or `bias` or a single parameter; None if unknown."""
    for own, pattern in parameters.items():
        if re.fullmatch(pattern, key):
            return own
    layer, _, part = key.rpartition(".")
    if part in ("weight", "bias"):
        for own, pattern in layers.items():
            if re.fullmatch(pattern, layer):
                return f"{own}.{part}"
    return None


def _as_kernel(weight: Tensor) -> Tensor:
    """Return a patch projection as `(hidden, channels, patch, patch)`.

    That of SigLIP2's flexible models is a matrix over the rows, columns and channels of a patch, in this order.
    """
    if weight.ndim == 4:
        return weight
    channels = 3
    side = math.isqrt(weight.shape[1] // channels)
    return weight.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2)


def _tokens(
    outside: Mapping[str, Tensor], width: int, num_prefix_positions: int, grid: tuple[int, int] | None
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Return class token, registers and positions; the positions of tokens are added to them."""
    prefix = [outside[name].reshape(-1, width) for name in ("class_token", "registers") if name in outside]
    tokens = torch.cat([torch.zeros(0, width), *prefix])
    positions = outside.get("positions")
    if positions is not None:
        positions = positions.reshape(-1, width)
        tokens = tokens.clone()
        tokens[:num_prefix_positions] += positions[:num_prefix_positions]
        positions = positions[num_prefix_positions:]
        side = math.isqrt(len(positions))
        rows, cols = grid or (side, side)
        if rows * cols != len(positions):
            raise UnknownTrunkError(f"its {len(positions)} positions make no grid of {rows} x {cols}")
        positions = positions.unflatten(0, (rows, cols))
    num_class_tokens = len(prefix[0]) if "class_token" in outside else 0
    return (tokens[0] if num_class_tokens else None), tokens[num_class_tokens:], positions


def _joined(block: Block) -> Block:
    """Return a block with query, key and value in one matrix, and a gated MLP's gate and value in another."""
    own = dict(block)
    if "attn.q.weight" in own:
        own["attn.qkv.weight"] = torch.cat([own.pop(f"attn.{part}.weight") for part in "qkv"])
    biases = {part: own.pop(f"attn.{part}.bias") for part in "qkv" if f"attn.{part}.bias" in own}
    if biases:  # DINOv3 has none for keys, where a bias changes nothing
        width = own["attn.qkv.weight"].shape[1]
        own["attn.qkv.bias"] = torch.cat([biases.get(part, torch.zeros(width)) for part in "qkv"])
    if "mlp.gate.weight" in own:
        for part in ("weight", "bias"):
            if f"mlp.gate.{part}" in own:
                own[f"mlp.w12.{part}"] = torch.cat([own.pop(f"mlp.gate.{part}"), own.pop(f"mlp.value.{part}")])
        _move(own, "mlp.fc2", "mlp.w3")
    else:
        _move(own, "mlp.value", "mlp.fc1")
    if "mlp.fc1.weight" in own and len(own["mlp.fc1.weight"]) == 2 * own["mlp.fc2.weight"].shape[1]:
        _move(own, "mlp.fc1", "mlp.w12")  # timm's packed SwiGLU
        _move(own, "mlp.fc2", "mlp.w3")
    return own


def _move(block: Block, old: str, new: str) -> None:
    for part in ("weight", "bias"):
        if f"{old}.{part}" in block:
            block[f"{new}.{part}"] = block.pop(f"{old}.{part}")


ALIKE = ("gelu", "gelu_pytorch_tanh", "gelu_new")
"""Activations that differ by less than 1e-3 everywhere: weights of one work with another."""


@torch.no_grad()
def fit_vit(student: RadioModel, trunk: VitTrunk, source: str, blocks: Sequence[int] | None = None) -> WarmStart:
    """Copy a trunk into a student, so that equal pixels give equal patch tokens before the first block.

    This holds at the source's own patch and grid, in evaluation. The student's normalization is folded into the patch
    projection. Class tokens of all teachers start as the source's class token. LayerScale is kept with
    `student.config.use_layer_scale`, and folded into the linear layers without it.

    Args:
        student: Changed in place. Heads stay as they are.
        trunk: The source's trunk.
        source: Its name.
        blocks: Indices of the source's blocks that become the student's, in order; None for all.

    Raises:
        RecipeError: If widths, heads or blocks do not fit; the message has a configuration that does.
    """
    config = student.config
    numbers = list(range(len(trunk.blocks))) if blocks is None else list(blocks)
    check_fit(config, trunk, source, numbers)
    report = WarmStart(f"{source!r}, a {trunk.name}", left_out=list(trunk.left_out))
    vit = student.radio_model.model
    _fit_patches(student, trunk, report)
    if config.video_temporal_patch_size is not None:
        report.added.append("projection of clips, random")
    _fit_prefix(vit.patch_generator.cls_token.token, trunk, config, report)
    for own, number in zip(vit.blocks, numbers, strict=True):
        own.load_state_dict(_fit_block(trunk.blocks[number], own, config))
    report.taken.append("all blocks" if numbers == list(range(len(trunk.blocks))) else f"the blocks {numbers}")
    if len(numbers) < len(trunk.blocks):
        report.left_out.append(f"{len(trunk.blocks) - len(set(numbers))} blocks")
    _report_blocks(trunk, config, report)
    _fit_final_norm(vit.norm, trunk, config, report)
    return report


def check_fit(config: RadioConfig, trunk: VitTrunk, source: str, numbers: Sequence[int]) -> None:
    """Refuse a trunk that differs from the student's, or blocks that it does not have.

    Raises:
        RecipeError: With the differences, and the preset or the configuration that fits.
    """
    depth = len(trunk.blocks)
    if config.is_foreign:
        raise RecipeError(
            f"`student.init_from` must be a RADIO folder, 'timm:NAME' or 'transformers:NAME' for this student, got "
            f"{source!r}, which has other blocks."
        )
    if config.downscale_levels:
        raise RecipeError(
            "`student.config.downscale_levels` must be null to start from a plain ViT, which merges no tokens, "
            f"such as {source!r}, got {config.downscale_levels}."
        )
    if config.navit is not None:
        raise RecipeError(
            f"`student.init_from` must be a RADIO folder of the same architecture for a student 'navit_*', got "
            f"{source!r}, a ViT with a table of positions."
        )
    check_blocks(numbers, depth, source)
    wanted = _config_fields(trunk, len(numbers))
    own = {name: getattr(config, name) for name in wanted}
    if own.get("hidden_act") in ALIKE and wanted.get("hidden_act") in ALIKE:
        own["hidden_act"] = wanted["hidden_act"]
    others = [f"{name} is {value}, not {own[name]}" for name, value in wanted.items() if value != own[name]]
    if others:
        rule = f"`student.init_from` {source!r} ({trunk.name}) has another trunk: {'; '.join(others)}."
        raise RecipeError(f"{rule} {_way_out(wanted, own, depth)}")
    if trunk.is_gated and trunk.hidden_act != "silu":
        raise RecipeError(f"`student.init_from` {source!r} gates its MLP by {trunk.hidden_act!r}, RADIO's by 'silu'.")
    if not config.qkv_bias and any(block.get("attn.qkv.bias", torch.zeros(1)).any() for block in trunk.blocks):
        raise RecipeError(
            f"`student.config.qkv_bias` must be true to start from {source!r}, whose queries have a bias, got false."
        )


def _config_fields(trunk: VitTrunk, num_blocks: int) -> dict[str, int | bool | str]:
    """Return the fields of the configuration that the trunk's weights need."""
    width = trunk.mlp_width
    fields: dict[str, int | bool | str] = {
        "hidden_size": len(trunk.patch),
        "num_hidden_layers": num_blocks,
        "num_attention_heads": trunk.num_heads,
        # RADIO's field is the width before SwiGLU's two thirds.
        "intermediate_size": width * 3 // 2 if trunk.is_gated else width,
        "use_swiglu_ffn": trunk.is_gated,
        "num_channels": trunk.patch.shape[1],
    }
    return fields if trunk.is_gated else {**fields, "hidden_act": trunk.hidden_act}


def _way_out(wanted: dict[str, int | bool | str], own: dict[str, int | bool | str], depth: int) -> str:
    """Return a line with settings that make a trunk fit: blocks of it, a preset, or fields of the configuration."""
    changed = [name for name, value in wanted.items() if value != own[name]]
    wanted_blocks = own["num_hidden_layers"]
    if changed == ["num_hidden_layers"] and isinstance(wanted_blocks, int) and wanted_blocks < depth:
        return f"Choose {wanted_blocks} of its blocks, for example `student.init_blocks: {list(range(wanted_blocks))}`."
    presets = [name for name in RadioConfig.presets if _has(RadioConfig.from_preset(name), wanted)]
    fields = ", ".join(f"{name}: {str(wanted[name]).lower()}" for name in changed)  # as in YAML
    line = f"Set `student.config: {{{fields}}}`"
    return f"{line}, or `student.preset` to one of {presets}." if presets else f"{line}."


def _has(config: RadioConfig, wanted: dict[str, int | bool | str]) -> bool:
    has_all = all(getattr(config, name) == value or name == "hidden_act" for name, value in wanted.items())
    return config.navit is None and has_all


def _fit_patches(student: RadioModel, trunk: VitTrunk, report: WarmStart) -> None:
    """Set projection and positions; both absorb the difference between the normalizations of source and student."""
    config, generator = student.config, student.radio_model.model.patch_generator
    kernel, side, grid = trunk.patch.double(), config.patch_size, config.position_grid_size
    if kernel.shape[-1] != side:
        from timm.layers.patch_embed import resample_patch_embed

        report.resized.append(f"patches from {kernel.shape[-1]} to {side} px")
        # By the pseudo-inverse of resizing patches: FlexiViT, section 3.4. https://arxiv.org/abs/2212.08013
        kernel = resample_patch_embed(trunk.patch, [side, side]).double()
    mean, std = (torch.tensor(each, dtype=torch.float64) for each in (trunk.mean, trunk.std))
    own_mean, own_std = (torch.tensor(each, dtype=torch.float64) for each in (config.norm_mean, config.norm_std))
    # The source's output for (x - mean) / std, from the student's input, (x - own_mean) / own_std.
    bias = trunk.patch_bias.double() + kernel.sum((2, 3)) @ ((own_mean - mean) / std)
    kernel = kernel * (own_std / std)[None, :, None, None]
    generator.embedder.weight.copy_(kernel.flatten(1))
    report.taken.append("patch projection")
    if not (torch.equal(mean, own_mean) and torch.equal(std, own_std)):
        report.resized.append(f"normalization by {trunk.mean} and {trunk.std} folded into the patch projection")
    table = _table(generator.pos_embed, trunk, config, report).double()
    if generator.embedder.bias is None:
        table = table + bias
        if bias.any():
            report.resized.append("bias of the patches added to the position table")
    else:
        generator.embedder.bias.copy_(bias)
    generator.pos_embed.copy_(table.view(1, grid**2, -1))


def _table(own: Tensor, trunk: VitTrunk, config: RadioConfig, report: WarmStart) -> Tensor:
    """Return the source's positions `(1, grid**2, hidden)` at the student's grid; zeros if it has no table."""
    side, table = config.position_grid_size, trunk.positions
    if table is None:
        report.added.append("position table of zeros: the source has none, so the student must learn positions")
        return torch.zeros_like(own)
    report.taken.append("positions")
    rows, cols = table.shape[:2]
    if (rows, cols) == (side, side):
        return table.flatten(0, 1)[None]
    report.resized.append(f"position table from {rows} x {cols} to {side} x {side}")
    return resize_position_table(table[None], side, side, config.pos_embed_align_corners)


def _fit_prefix(own: Tensor, trunk: VitTrunk, config: RadioConfig, report: WarmStart) -> None:
    """Set class tokens and registers; those that the source lacks keep their start."""
    num_cls, given = config.num_cls_tokens, len(trunk.registers)
    if trunk.class_token is None:
        report.added.append(f"{num_cls} class tokens, random: the source has none")
    else:
        own[:num_cls] = trunk.class_token
        report.taken.append("class token" + (f", for all {num_cls} of them" if num_cls > 1 else ""))
    shared = min(given, config.num_registers)
    own[num_cls:][:shared] = trunk.registers[:shared]
    if shared:
        report.taken.append(f"{shared} registers")
    if config.num_registers > shared:
        report.added.append(f"{config.num_registers - shared} registers, random")
    if given > shared:
        report.left_out.append(f"{given - shared} registers")


def _fit_block(given: Block, own: nn.Module, config: RadioConfig) -> Block:
    """Return a block's weights for the student's block: missing biases are zeros, LayerScale is 1 or folded."""
    block = dict(given)
    for scale, linear in (("ls1", "attn.proj"), ("ls2", "mlp.w3" if config.use_swiglu_ffn else "mlp.fc2")):
        factors = block.get(f"{scale}.grandma")
        if factors is None or config.use_layer_scale:
            continue
        del block[f"{scale}.grandma"]
        block[f"{linear}.weight"] = factors[:, None] * block[f"{linear}.weight"]
        if f"{linear}.bias" in block:
            block[f"{linear}.bias"] = factors * block[f"{linear}.bias"]
    if not config.qkv_bias:
        block.pop("attn.qkv.bias", None)  # all zeros, see `check_fit`
    for name, tensor in own.state_dict().items():
        if name.endswith(".bias") and not name.startswith("norm"):
            block.setdefault(name, torch.zeros_like(tensor))
        elif name.endswith(".grandma"):
            block.setdefault(name, torch.ones_like(tensor))
    return block


def _report_blocks(trunk: VitTrunk, config: RadioConfig, report: WarmStart) -> None:
    first = trunk.blocks[0]
    if "ls1.grandma" in first and not config.use_layer_scale:
        report.resized.append("LayerScale folded into the linear layers")
    if "ls1.grandma" not in first and config.use_layer_scale:
        report.added.append("LayerScale, of ones")
    missing = [name for name in ("attn.qkv", "attn.proj") if f"{name}.bias" not in first]
    if missing and config.qkv_bias:
        report.added.append(f"biases of {', '.join(missing)}, of zeros")
    for name, theirs in (("hidden_act", trunk.hidden_act), ("layer_norm_eps", trunk.layer_norm_eps)):
        ours = getattr(config, name)
        if ours != theirs and not (name == "hidden_act" and trunk.is_gated):
            report.left_out.append(f"{name} {theirs} (the student has {ours})")


def _fit_final_norm(own: nn.Module, trunk: VitTrunk, config: RadioConfig, report: WarmStart) -> None:
    if not config.use_final_norm:
        if trunk.final_norm is not None:
            report.left_out.append("final norm")
    elif trunk.final_norm is None:
        report.added.append("final norm, which changes no scale yet")
    else:
        own.load_state_dict(trunk.final_norm)
        report.taken.append("final norm")
