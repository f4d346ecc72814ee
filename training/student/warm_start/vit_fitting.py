"""Fits the trunk of a plain ViT to a student: its pixels, its grid, its prefix tokens, its blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.layers_radio import resize_position_table
from training.recipe import RecipeError
from training.student.warm_start.report import WarmStart
from training.student.warm_start.vit import Block, VitTrunk


ALIKE = ("gelu", "gelu_pytorch_tanh", "gelu_new")
"""Activations that differ by less than 1e-3 everywhere, so that weights of one work with another."""


@torch.no_grad()
def fit_vit(student: RadioModel, trunk: VitTrunk, source: str, blocks: Sequence[int] | None = None) -> WarmStart:
    """Copy a trunk into a student, so that equal pixels give equal patch tokens before the first block.

    That holds at the source's own patch and grid, in evaluation. The student's normalization is folded into the patch
    projection. Class tokens of all teachers start as the source's one. LayerScale is kept with
    `student.config.use_layer_scale`, and folded into the linear layers without.

    Args:
        student: Changed in place. Heads stay as they are.
        trunk: The source's, see `vit_sources`.
        source: Its name.
        blocks: Which of the source's blocks become the student's, in order; None for all.

    Raises:
        RecipeError: If widths, heads or blocks do not fit; the message has the configuration that would.
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
    """Refuse a trunk that is not the student's, or blocks that it has not.

    Raises:
        RecipeError: With what differs, and the preset or the configuration that fits.
    """
    depth = len(trunk.blocks)
    if config.eradio is not None:
        raise RecipeError(f"`student.config.eradio` must be null to start from a plain ViT such as {source!r}.")
    if config.downscale_levels:
        raise RecipeError(
            "`student.config.downscale_levels` must be null to start from a plain ViT, whose tokens are never merged, "
            f"such as {source!r}, got {config.downscale_levels}."
        )
    if not all(0 <= number < depth for number in numbers):
        raise RecipeError(f"`student.init_blocks` must be blocks of {source!r}, from 0 to {depth - 1}, got {numbers}.")
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
    """Return the fields of a configuration that decide whether the weights fit, as the trunk wants them."""
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
    """Return the line that would make a trunk fit: blocks of it, a preset, or fields of the configuration."""
    changed = [name for name, value in wanted.items() if value != own[name]]
    wanted_blocks = own["num_hidden_layers"]
    if changed == ["num_hidden_layers"] and isinstance(wanted_blocks, int) and wanted_blocks < depth:
        return f"Choose {wanted_blocks} of its blocks, for example `student.init_blocks: {list(range(wanted_blocks))}`."
    presets = [name for name in RadioConfig.presets if _has(RadioConfig.from_preset(name), wanted)]
    fields = ", ".join(f"{name}: {str(wanted[name]).lower()}" for name in changed)  # as in YAML
    line = f"Set `student.config: {{{fields}}}`"
    return f"{line}, or `student.preset` to one of {presets}." if presets else f"{line}."


def _has(config: RadioConfig, wanted: dict[str, int | bool | str]) -> bool:
    return all(getattr(config, name) == value or name == "hidden_act" for name, value in wanted.items())


def _fit_patches(student: RadioModel, trunk: VitTrunk, report: WarmStart) -> None:
    """Set projection and positions, with what the source subtracts and divides by in place of what the student does."""
    config, generator = student.config, student.radio_model.model.patch_generator
    kernel, side, grid = trunk.patch.double(), config.patch_size, config.position_grid_size
    if kernel.shape[-1] != side:
        report.resized.append(f"patches from {kernel.shape[-1]} to {side} px")
        kernel = _resize_kernel(trunk.patch, side).double()
    mean, std = (torch.tensor(each, dtype=torch.float64) for each in (trunk.mean, trunk.std))
    own_mean, own_std = (torch.tensor(each, dtype=torch.float64) for each in (config.norm_mean, config.norm_std))
    # What the source computes of (x - mean) / std, for what the student has, (x - own_mean) / own_std.
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


def _resize_kernel(kernel: Tensor, side: int) -> Tensor:
    """Return a patch projection for other patches, by the pseudo-inverse of resizing them.

    References:
        FlexiViT, section 3.4. https://arxiv.org/abs/2212.08013
    """
    from timm.layers.patch_embed import resample_patch_embed

    return resample_patch_embed(kernel, [side, side])


def _table(own: Tensor, trunk: VitTrunk, config: RadioConfig, report: WarmStart) -> Tensor:
    """Return the source's positions `(1, grid**2, hidden)` at the student's grid; zeros where it has no table."""
    side, table = config.position_grid_size, trunk.positions
    if table is None:
        report.added.append("position table, of zeros: the source has none, and what it knew of places must be learned")
        return torch.zeros_like(own)
    report.taken.append("positions")
    rows, cols = table.shape[:2]
    if (rows, cols) == (side, side):
        return table.flatten(0, 1)[None]
    report.resized.append(f"position table from {rows} x {cols} to {side} x {side}")
    return resize_position_table(table[None], side, side, config.pos_embed_align_corners)


def _fit_prefix(own: Tensor, trunk: VitTrunk, config: RadioConfig, report: WarmStart) -> None:
    """Set class tokens and registers; those that the source has not stay as they started."""
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
    """Return a block's weights as the student's block has them: missing biases are zeros, LayerScale is 1 or folded."""
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
