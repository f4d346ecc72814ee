"""Start of a student from a RADIO checkpoint: its trunk, and the heads of teachers that the recipe keeps."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modeling_radio import RadioAdaptorConfig, RadioConfig, RadioModel
from modeling_radio.core.opening import open_model
from modeling_radio.core.seeds import make_generator
from modeling_radio.layers_radio import resize_position_table
from modeling_radio.modeling_radio import ADAPTORS, BLOCKS, DECODER_PREFIX, POSITIONS, PREFIX_TOKENS, SUMMARY_INDICES
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.student.export import remove_normalizers
from modeling_radio.training.student.parameters import CLIPS, SUMMARY_QUERIES


@dataclass(frozen=True)
class WarmStart:
    """Report of a start, with entries of a few words.

    Attributes:
        source: The source as named by `student.init_from`, and the kind of model.
        kept: Teachers whose heads were taken; their dense heads predict features in the teacher's own space.
        taken: Weights of the source that the student has now.
        resized: Weights that were resized, or folded into others.
        added: Parts that the source lacks, and how they start.
        left_out: Parts of the source that the student lacks.
        needs_projections: Whether the network's levels have projections that the source lacks.
    """

    source: str
    kept: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    needs_projections: bool = False

    def describe(self) -> str:
        """Return one line for the source, and one for each list that is not empty."""
        lists = {"taken": self.taken, "resized": self.resized, "added": self.added, "left out": self.left_out}
        lines = [f"  {name}: {'; '.join(entries)}" for name, entries in lists.items() if entries]
        return "\n".join([f"Start from {self.source}.", *lines])


def check_blocks(blocks: Sequence[int], depth: int, source: str) -> None:
    """Raise a RecipeError if `student.init_blocks` names blocks that a source of `depth` blocks does not have."""
    if not all(0 <= block < depth for block in blocks):
        raise RecipeError(f"`student.init_blocks` must be blocks of {source!r}, from 0 to {depth - 1}, got {blocks}.")


NOISE = 0.01
"""Deviation of the noise, in deviations of the weight. Our choice: large beside rounding, small beside the weight."""
SEED = 0
"""Seed of the noise, the same on all ranks and in all runs. The run's seed decides about new weights only."""

_NEW = ("decoder.", "downscale_blocks.", "prefix_proj_blocks.")
_NEW_KEYS = tuple(f"{BLOCKS.removesuffix('blocks')}{name}" for name in _NEW)
_PREFIX = re.compile(rf"{re.escape(BLOCKS.removesuffix('blocks'))}prefix_proj_blocks\.\d+\.weight")


def widen(key: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a weight of a narrow block, repeated to the shape of a wide one; unchanged if it has this shape.

    Args:
        key: Its name, since projections to queries, keys and values are repeated apart.
        tensor: The narrow weight: a matrix `(output, input)`, or a vector.
        shape: Shape of the wide weight, each side a multiple of the narrow one.
    """
    if tensor.shape == shape:
        return tensor
    parts = 3 if ".attn.qkv." in key else 1  # each with its own heads
    factors = [wide // narrow for wide, narrow in zip(shape, tensor.shape, strict=True)]
    wide = tensor.unflatten(0, (parts, -1)).repeat(1, *factors).flatten(0, 1)
    if tensor.ndim == 2:
        wide = wide / factors[1]
    deviation = NOISE * wide.std() if wide.numel() > 1 else 0.0
    return wide + deviation * torch.randn(wide.shape, generator=make_generator(SEED, "widening", key))


def check_widening(config: RadioConfig, source: RadioConfig, name: str) -> None:
    """Refuse a start with other mergings than the student's, or widths that are no multiples.

    Args:
        config: The student's configuration.
        source: The checkpoint's configuration.
        name: The checkpoint.

    Raises:
        RecipeError: If the checkpoint cannot be widened, or needs no widening and has another decoder.
    """
    if source.num_mergings:
        fields = ("downscale_levels", "qk_norm", "decoder_depth", "splitting_blocks", "filler_side")
        others = [field for field in fields if getattr(config, field) != getattr(source, field)]
        if others:
            raise RecipeError(
                f"`student.init_from` {name!r} is a RADIO1D with another {', '.join(others)}: change `student.config` "
                "to match it, or start from a plain network."
            )
    elif config.num_mergings:
        repeated = [config.intermediate_size << merges for merges in range(config.num_mergings + 1)]
        own = [config.merged_intermediate_size(merges) for merges in range(config.num_mergings + 1)]
        if config.qk_norm or own != repeated:
            raise RecipeError(
                f"`student.init_from` {name!r} can be widened only to `qk_norm` false and MLPs of {repeated}, got "
                f"{config.qk_norm} and {own}."
            )


TRUNK_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "use_swiglu_ffn",
    "qkv_bias",
    "num_channels",
    "patch_size",
    "norm_mean",
    "norm_std",
    "use_layer_scale",
    "use_patch_bias",
    "use_final_norm",
    "use_cropped_positions",
    "pos_embed_align_corners",
    "use_feature_normalizer",
    "num_intermediate_normalizers",
    "intermediate_rotation_per_layer",
    "eradio",
    "wrapped",
)
"""Fields of the configuration that the meaning of the trunk's weights depends on."""


def open_source(source: str, config: RadioConfig, blocks: Sequence[int] | None = None) -> RadioModel:
    """Open the checkpoint that a student starts from.

    Args:
        source: Folder or Hub id.
        config: The student's configuration.
        blocks: Indices of its blocks that become the student's, in order; None for all.

    Raises:
        RecipeError: If it cannot be opened, or its trunk differs; the message lists the fields.
    """
    try:
        model = open_model(source, device="cpu", as_backbone=True).backbone
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"`student.init_from` {source!r} is neither a RADIO checkpoint nor a ViT that a student can start from: "
            f"{reason}"
        ) from error
    if not config.use_feature_normalizer and not config.num_intermediate_normalizers:
        remove_normalizers(model)
    depth = model.config.num_hidden_layers
    if blocks is not None:
        check_blocks(blocks, depth, source)
    theirs = {field: getattr(model.config, field) for field in TRUNK_FIELDS}
    if (model.config.navit is None) != (config.navit is None) or (
        config.navit is not None and model.config.num_prefix_tokens != config.num_prefix_tokens
    ):
        raise RecipeError(
            f"`student.init_from` must be a checkpoint with positions of the student's kind, and of NaViT with as many "
            f"class tokens and registers, got {source!r}."
        )
    if blocks is not None:
        theirs["num_hidden_layers"] = len(blocks)
    pairs = {field: (getattr(config, field), value) for field, value in theirs.items()}
    others = [f"{field} is {given}, not {ours}" for field, (ours, given) in pairs.items() if ours != given]
    if others:
        raise RecipeError(
            f"`student.init_from` {source!r} has another trunk ({'; '.join(others)}): change `student.preset` or "
            "`student.config` to match it."
        )
    check_widening(config, model.config, source)
    return model


@torch.no_grad()
def warm_start(student: RadioModel, source: RadioModel, name: str, blocks: Sequence[int] | None = None) -> WarmStart:
    """Copy the trunk, and the class tokens and heads of the teachers that both have.

    A head is copied if its shape is the same; a class token follows its teacher's name. Registers keep their order.

    Args:
        student: Changed in place.
        source: A model with the same trunk, see `open_source`.
        name: Its name, for the report.
        blocks: Indices of its blocks that become the student's, in order; None for all.
    """
    ours, theirs = _adaptors(student), _adaptors(source)
    kept = [name for name in ours if name in theirs and _is_same_head(ours[name], theirs[name])]
    own, given = student.state_dict(), source.state_dict()
    heads = tuple(f"{ADAPTORS}.{name}." for name in kept)
    is_widened = student.config.num_mergings > 0 and not source.config.num_mergings
    has_new_clips = CLIPS in own and CLIPS not in given
    tokens = SUMMARY_QUERIES if SUMMARY_QUERIES in own else PREFIX_TOKENS
    apart = {POSITIONS, tokens, SUMMARY_INDICES, DECODER_PREFIX, *([CLIPS] if has_new_clips else [])}
    for key, tensor in own.items():
        if is_widened and key.startswith(_NEW_KEYS):
            if _PREFIX.fullmatch(key):  # repeats its tokens, so that they, too, are the narrow ones twice
                tensor.copy_(torch.eye(tensor.shape[1]).repeat(2, 1))
        elif key.startswith(heads) or not (key.startswith(f"{ADAPTORS}.") or key in apart):
            tensor.copy_(widen(key, given[_key_in_source(key, blocks)], tensor.shape))
    if POSITIONS in own:
        own[POSITIONS].copy_(_resize_table(given[POSITIONS], student.config))
    is_shared = tokens in own  # a network with a class token of its own has no others
    copied = _copy_prefix_tokens(own[tokens], given[tokens], student.config, source.config) if is_shared else []
    if source.config.num_mergings:
        _copy_prefix_tokens(own[DECODER_PREFIX], given[DECODER_PREFIX], student.config, source.config)
    report = WarmStart(f"{name!r}, a RADIO checkpoint", kept)
    report.taken.append("trunk" if blocks is None else f"trunk, its blocks {list(blocks)}")
    if is_widened:
        levels = student.config.downscale_levels
        report.resized.append(
            f"blocks behind the mergings before {levels}, widened by repetition with {NOISE:.0%} noise"
        )
        report.added.append("mergings and decoder")
    report.taken.extend([*_note("heads of", kept), *_note("class tokens of", copied)])
    report.added.extend(_note("heads of", [name for name in ours if name not in theirs]))
    others = [name for name in ours if name in theirs and name not in kept]
    report.added.extend(_note("heads, since the checkpoint's have other shapes, of", others))
    report.added.extend(["projection of clips"] if has_new_clips else [])
    report.left_out.extend(_note("heads of", [name for name in theirs if name not in ours]))
    sides = source.config.position_grid_size, student.config.position_grid_size
    if sides[0] != sides[1]:
        report.resized.append(f"position table from {sides[0]} x {sides[0]} to {sides[1]} x {sides[1]}")
    surplus = student.config.num_registers - source.config.num_registers
    if surplus:
        (report.added if surplus > 0 else report.left_out).append(f"{abs(surplus)} registers")
    return report


def _adaptors(model: RadioModel) -> dict[str, RadioAdaptorConfig]:
    return {adaptor.name: adaptor for adaptor in model.config.adaptor_configs}


def _is_same_head(ours: RadioAdaptorConfig, theirs: RadioAdaptorConfig) -> bool:
    return ours == dataclasses.replace(theirs, token_index=ours.token_index)


def _resize_table(table: Tensor, config: RadioConfig) -> Tensor:
    """Return a position table `(1, side * side, hidden)` at the side of a configuration."""
    side, wanted = round(table.shape[1] ** 0.5), config.position_grid_size
    if side == wanted:
        return table
    return resize_position_table(table.unflatten(1, (side, side)), wanted, wanted, config.pos_embed_align_corners)


def _copy_prefix_tokens(own: Tensor, given: Tensor, ours: RadioConfig, theirs: RadioConfig) -> list[str]:
    """Copy registers and the class tokens of shared teachers in place; return those teachers."""
    token_indices = {adaptor.name: adaptor.token_index for adaptor in theirs.adaptor_configs}
    # A head of NVIDIA's may read the first patch: it has no token of its own to copy.
    shared = [adaptor for adaptor in ours.adaptor_configs if token_indices.get(adaptor.name, len(given)) < len(given)]
    for adaptor in shared:
        own[adaptor.token_index].copy_(given[token_indices[adaptor.name]])
    registers = min(ours.num_registers, theirs.num_registers)
    own[ours.num_cls_tokens :][:registers].copy_(given[theirs.num_cls_tokens :][:registers])
    return [adaptor.name for adaptor in shared]


def _key_in_source(key: str, blocks: Sequence[int] | None) -> str:
    """Return the name of a weight in a source, given which of its blocks are the student's."""
    match = re.fullmatch(rf"{re.escape(BLOCKS)}\.(\d+)\.(.+)", key)
    return key if match is None or blocks is None else f"{BLOCKS}.{blocks[int(match[1])]}.{match[2]}"


def _note(what: str, names: list[str]) -> list[str]:
    return [f"{what} {', '.join(names)}"] if names else []
