"""Configuration of the RADIO vision backbones: a class for the fields of each concern; `RadioConfig` has all."""

from .version_radio import MINIMUM as MINIMUM  # first: later imports fail with an older transformers


# isort: split
import copy
import dataclasses
import inspect
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .checks_radio import (
    COUNT,
    FLAG,
    LARGEST,
    MOST_BLOCKS,
    WORD,
    Resolution,
    check_blocks,
    check_choice,
    check_multiple,
    did_you_mean,
    find_builtin,
    in_words,
    listed,
    mlp_ratio_for,
    nearest_multiple,
    optional,
    own_names,
    round_to_step,
)
from .hub_radio import import_sibling, need_cached, register_parts, remember_folder


T = TypeVar("T")
Number = float | int
Integers = list[int] | tuple[int, ...]
Numbers = list[float | int] | tuple[float | int, ...]

# Without PReLU and xIELU: these have learned weights, which no checkpoint holds.
ACTIVATIONS = tuple(name for name in ACT2FN if name not in ("prelu", "xielu"))
DTYPE_NAMES = tuple(
    name for name, value in vars(torch).items() if isinstance(value, torch.dtype) and value.is_floating_point
)
NAMES_IN_USE = (*dir(nn.ModuleDict()), "backbone")
"""Names that no adaptor can have: attributes of the module that holds them, and the key of the backbone's outputs."""
# Arguments of a configuration that are no fields of `config.json`.
OTHER_ARGUMENTS = ("num_labels", "out_features", "out_indices", "attn_implementation", "output_attentions")
LABELS = ("id2label", "label2id")
# Fields of transformers' native configuration that follow from others.
NATIVE_FIELDS = ("patch_dim", "video_patch_dim")
# Values that were fitted to the classes; they are reset where the number of classes changes.
FITTED_LISTS = ("class_weights", "score_thresholds")
FITTED = ("temperature", *FITTED_LISTS)
# An unknown name at least this similar to a field (difflib's ratio) gives a warning. Our choice: one letter of ten.
SLIP = 0.85

FOREIGN_LAYOUTS: list[Any] = []
"""Readers of folders in layouts of others, which the package adds when it is imported; none where this file runs as
remote code. Each has `place`, the folder that is opened for a path or name, `describes` and `fields` for a parsed
`config.json`, `opening_arguments` for a folder and `check_loaded` for the model that was opened with them."""


def with_value_errors(cls: type[T]) -> type[T]:
    """Let a strict dataclass raise a `ValueError` that names the field, in place of the errors of huggingface-hub."""
    set_field, validate = cls.__setattr__, cls.validate  # pyrefly: ignore[missing-attribute]
    kinds = {each.name: each.type for each in dataclasses.fields(cls)}  # pyrefly: ignore[bad-argument-type]

    def set_checked(self: Any, name: str, value: Any) -> None:
        try:
            set_field(self, name, value)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"`{name}` must be {in_words(kinds[name])}, got {value!r:.200}.") from error

    def validate_all(self: Any) -> None:
        try:
            validate(self)
        except StrictDataclassClassValidationError as error:
            raise ValueError(str(error.__cause__)) from error

    cls.__setattr__ = set_checked  # pyrefly: ignore[bad-assignment]
    cls.validate = validate_all  # pyrefly: ignore[missing-attribute]
    return cls


def check_range(config: Any, low: float, high: float, *names: str, open_low: bool = False) -> None:
    """Refuse fields with a number outside of [low, high], or NaN; `None` is allowed.

    Raises:
        ValueError: It names the field.
    """
    for name in names:
        value = getattr(config, name)
        numbers = [] if value is None else value if isinstance(value, list | tuple) else [value]
        if not all(low <= each <= high and not (open_low and each == low) for each in numbers):
            raise ValueError(f"`{name}` must be in {'(' if open_low else '['}{low}, {high}], got {value!r:.200}.")


def check_step(name: str, size: int, step: int, *, of: str = "") -> None:
    """Refuse a size that is no multiple of a step, which the field `of` has where it is named.

    Raises:
        ValueError: It names the nearest multiple.
    """
    if size % step:
        shown = f"{of} ({step})" if of else step
        raise ValueError(
            f"`{name}` must be a multiple of {shown}, got {size}. The nearest is {round_to_step(size, step)}."
        )


def check_json(config: Any, *names: str) -> None:
    """Refuse fields with a value that cannot be written to `config.json`.

    Raises:
        ValueError: It names the field.
    """
    for name in names:
        if not _is_json(getattr(config, name)):
            raise ValueError(f"`{name}` must be a mapping of what JSON can hold, got {getattr(config, name)!r:.200}.")


@with_value_errors
@strict
@dataclass(kw_only=True)
class RadioAdaptorConfig:
    """Shape of one adaptor: the pair of heads that maps the backbone into one teacher's output space.

    Attributes:
        name: The teacher's name, for example `"siglip2-g"`. It is part of the weights' keys.
        token_index: Index of the class token that the summary head reads. NVIDIA's files may also name a register,
            or the first patch, `num_prefix_tokens`.
        summary_dim: Channels of the teacher's summary; `None` builds no summary head.
        feature_dim: Channels of the teacher's dense features, after upsampling; `None` builds no dense head.
        hidden_size: Hidden width of both heads' MLPs.
        num_inner_blocks: Residual blocks between the first and the last linear layer (`mlp_version="v2"` only).
        mlp_version: `"v1"` (RADIOv2: linear, norm, ReLU, linear) or `"v2"` (every later model).
        feature_head: `"mlp"`, or `"attention"`: ViT blocks before the MLP (siglip2-g of C-RADIOv4).
        upsample_factor: The dense head predicts this many times more rows and columns (pixel shuffle).
        feature_hidden_size: Hidden width of the dense head's MLP where it differs from `hidden_size`.
        feature_num_inner_blocks: Residual blocks of the dense head's MLP where they differ.
        feature_mlp_version: Version of the dense head's MLP where it differs.
        feature_num_blocks: ViT blocks of an attention head.
        feature_num_attention_heads: Attention heads of those blocks.
    """

    name: str
    token_index: int = 0
    summary_dim: int | None = None
    feature_dim: int | None = None
    hidden_size: int
    num_inner_blocks: int = 1
    mlp_version: Literal["v1", "v2"] = "v2"
    feature_head: Literal["mlp", "attention"] = "mlp"
    upsample_factor: int = 1
    feature_hidden_size: int | None = None
    feature_num_inner_blocks: int | None = None
    feature_mlp_version: Literal["v1", "v2"] | None = None
    feature_num_blocks: int = 2
    feature_num_attention_heads: int = 16

    def validate_numbers(self) -> None:
        """Refuse widths and counts that no head has."""
        check_range(self, 0, LARGEST, "token_index")
        check_range(self, 0, MOST_BLOCKS, "num_inner_blocks", "feature_num_inner_blocks", "feature_num_blocks")
        check_range(self, 1, LARGEST, "summary_dim", "feature_dim", "hidden_size", "upsample_factor")
        check_range(self, 1, LARGEST, "feature_hidden_size", "feature_num_attention_heads")

    def validate_name(self) -> None:
        """Refuse names that the module that holds adaptors cannot give."""
        if not self.name or "." in self.name or self.name in NAMES_IN_USE:
            raise ValueError(
                "`name` must be without dots, no attribute of torch's `ModuleDict`, which holds adaptors, and not "
                f"'backbone', got {self.name!r}."
            )

    @classmethod
    def from_dict(cls, values: Any) -> "RadioAdaptorConfig":
        """Build one from a JSON object, an entry of `adaptors`.

        Raises:
            ValueError: If a key is unknown (the message suggests the nearest one), missing or wrong.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"Unknown key {key!r} in `adaptors`.{did_you_mean(key, known)}")
        missing = [key for key in ("name", "hidden_size") if key not in values]
        if missing:
            raise ValueError(f"An entry of `adaptors` lacks {missing}: {values}.")
        try:
            return cls(**values)
        except ValueError as error:
            prefix = "adaptors" if str(error).startswith("`name`") else f"adaptors.{values['name']}"
            raise ValueError(str(error).replace("`", f"`{prefix}.", 1)) from error


class PresetNames:
    """The names of all presets, read from their file when they are asked for."""

    def __get__(self, instance: Any, owner: type) -> tuple[str, ...]:
        return tuple(import_sibling("presets_radio").PRESETS)


# The fields of `RadioConfig` by concern. A class inherits from those whose fields it reads.


@dataclass(kw_only=True, repr=False)
class OriginFields:
    """Origin of the weights.

    Attributes:
        version: Name of the published version that the weights come from.
        nvidia_source: Content of NVIDIA's file beside the weights (training arguments, names of heads), so that a
            converted checkpoint can be converted back. The network does not read it.
    """

    version: str | None = None
    nvidia_source: dict[str, Any] | None = None

    def validate_origin(self) -> None:
        """Refuse what `config.json` cannot hold."""
        check_json(self, "nvidia_source")


@dataclass(kw_only=True, repr=False)
class TrunkFields(OriginFields):
    """Transformer blocks, tokens before the patches, and networks of another architecture in their place.

    Attributes:
        hidden_size: Width of the tokens.
        num_hidden_layers: Number of transformer blocks.
        num_attention_heads: Attention heads per block.
        intermediate_size: Hidden width of the MLP, before SwiGLU's two thirds; 0 takes it from `mlp_ratio`.
        mlp_ratio: The same divided by `hidden_size`, as native transformers wants it; 0 takes it from
            `intermediate_size`, and where that is 0 too it is 4. Once built, a configuration has the smallest number
            whose product with `hidden_size` truncates to `intermediate_size`.
        hidden_act: Activation of the MLP.
        layer_norm_eps: Epsilon of every layer norm.
        attention_probs_dropout_prob: Dropout on attention probabilities in training.
        hidden_dropout_prob: Unused, kept for the native config.
        drop_path_rate: Stochastic depth of the last block in training; it grows linearly from 0 at the first.
        use_swiglu_ffn: SwiGLU instead of the MLP (the DINOv2-shaped g models).
        qkv_bias: Bias in the query, key and value projections.
        use_layer_scale: Learned per-channel scale on each residual branch. Native RADIO does not know its key, so
            converted checkpoints have it folded into the linear layers.
        layerscale_value: Start value of LayerScale where `use_layer_scale`. Native RADIO scales by it in any case.
        use_patch_bias: Bias in the patch projection (the DINOv2-shaped g models).
        use_final_norm: Layer norm after the last block (the DINOv2-shaped g models).
        num_cls_tokens: Class tokens, one per distinct teacher name (one in all for the g models).
        num_registers: Register tokens after the class tokens.
        summary_idxs: Class tokens whose concatenation is the summary; `None` takes the first two. NVIDIA's files may
            also name registers, which follow after the class tokens.
        use_feature_normalizer: Rotate and shift the dense features into a standardized space.
        num_intermediate_normalizers: Layers with their own normalizer for intermediate features; 0 for none.
        intermediate_rotation_per_layer: One rotation for each of those layers instead of a shared one.
        initializer_range: Standard deviation of freshly initialized linear weights.
        eradio: Arguments of NVIDIA's E-RADIO, by its names (`eradio_radio.py`), whose features have `hidden_size`
            channels at the stride `patch_size`; other fields here say nothing of it. `None` is the ViT of these.
        navit: Options of a ViT with rotary positions in place of a table, NaViT (`NavitOptions` in `navit_radio.py`).
        wrapped: In place of the ViT a network of timm or transformers, or a class (`wrapped_radio.py`), as `eradio`.
    """

    hidden_size: int = 1280
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    intermediate_size: int = 0
    mlp_ratio: Number = 0.0
    hidden_act: str = "gelu"
    layer_norm_eps: Number = 1e-6
    attention_probs_dropout_prob: Number = 0.0
    hidden_dropout_prob: Number = 0.0
    drop_path_rate: Number = 0.0
    use_swiglu_ffn: bool = False
    qkv_bias: bool = True
    use_layer_scale: bool = False
    layerscale_value: Number = 1.0
    use_patch_bias: bool = False
    use_final_norm: bool = False
    num_cls_tokens: int = 3
    num_registers: int = 7
    summary_idxs: Integers | None = None
    use_feature_normalizer: bool = False
    num_intermediate_normalizers: int = 0
    intermediate_rotation_per_layer: bool = False
    initializer_range: Number = 0.02
    eradio: dict[str, Any] | None = None
    navit: dict[str, Any] | None = None
    wrapped: dict[str, Any] | None = None

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the first patch: class tokens and registers."""
        return self.num_cls_tokens + self.num_registers

    @property
    def is_foreign(self) -> bool:
        """True if the network is no ViT of ours, and has neither its blocks nor windows that a call could choose."""
        return self.eradio is not None or self.wrapped is not None

    def _mlp_width(self) -> tuple[int, float]:
        """Return `intermediate_size` and `mlp_ratio`, each of which may follow from the other."""
        check_range(self, 1, LARGEST, "hidden_size")
        check_range(self, 0, LARGEST, "intermediate_size", "mlp_ratio")
        if self.mlp_ratio and self.intermediate_size:
            self._check_mlp_width("Give one of the two.")
        width = self.intermediate_size or int(self.hidden_size * (self.mlp_ratio or 4))
        if not 1 <= width <= LARGEST:
            raise ValueError(
                f"`mlp_ratio` times `hidden_size` ({self.hidden_size}) must be in [1, {LARGEST}], got {self.mlp_ratio}."
            )
        return width, mlp_ratio_for(width, self.hidden_size)

    def _check_mlp_width(self, advice: str) -> None:
        width = int(self.hidden_size * self.mlp_ratio)
        if self.intermediate_size != width:
            raise ValueError(
                f"`intermediate_size` must be {width}, `hidden_size` {self.hidden_size} times `mlp_ratio` "
                f"{self.mlp_ratio}, got {self.intermediate_size}. {advice}"
            )

    def validate_depth(self) -> None:
        """Refuse a depth that no network has, before validators that count blocks: they run in alphabetical order."""
        check_range(self, 1, MOST_BLOCKS, "num_hidden_layers")

    def validate_trunk(self) -> None:
        """Refuse a trunk that cannot be built."""
        check_range(self, 1, LARGEST, "hidden_size", "num_attention_heads", "intermediate_size")
        check_range(self, 0, 1, "layer_norm_eps", "initializer_range", open_low=True)
        check_range(self, -LARGEST, LARGEST, "layerscale_value")
        check_choice("hidden_act", self.hidden_act, ACTIVATIONS)
        for name in ("attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)!r}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads` ({self.num_attention_heads}), got "
                f"{self.hidden_size}."
            )
        check_range(self, 0, LARGEST, "mlp_ratio")
        self._check_mlp_width("Set the three together, or build a new configuration.")
        if self.num_intermediate_normalizers not in (0, self.num_hidden_layers):
            raise ValueError(
                f"`num_intermediate_normalizers` must be 0 or `num_hidden_layers` ({self.num_hidden_layers}), one for "
                f"each block, got {self.num_intermediate_normalizers}."
            )
        check_json(self, "eradio", "navit", "wrapped")

    def validate_tokens(self) -> None:
        """Refuse tokens that the summary cannot read: other ones than class tokens, or registers in NVIDIA's files."""
        check_range(self, 1 if self.navit is None else 0, LARGEST, "num_cls_tokens")
        check_range(self, 0, LARGEST, "num_registers")
        of_nvidia = self.nvidia_source is not None
        what = "class tokens and registers" if of_nvidia else "the class tokens"
        end = self.num_prefix_tokens if of_nvidia else self.num_cls_tokens
        if any(not 0 <= index < end for index in self.summary_idxs or []):
            raise ValueError(f"`summary_idxs` must lie in [0, {end}), {what}, got {self.summary_idxs}.")


@dataclass(kw_only=True, repr=False)
class PixelFields(TrunkFields):
    """Images: their sizes, standardization, patches and positions.

    Attributes:
        num_channels: Channels of the image.
        patch_size: Side of a square patch in pixels.
        image_size: Nominal image side in pixels; not a limit.
        max_img_size: Image side in pixels that the position table spans.
        max_resolution: Largest accepted image side in pixels; `None` means `max_img_size`.
        preferred_resolution: Height and width in pixels that the processor uses by default.
        norm_mean: Per-channel mean subtracted inside the model from pixels in [0, 1].
        norm_std: Per-channel standard deviation by which the model divides.
        use_cropped_positions: Fit the position table to each grid (cropped position embeddings). Without, the table
            keeps its scale: it is cropped top-left, and resized only along a side that it does not reach.
        pos_embed_align_corners: Resize the position table with aligned corners (C-RADIOv3-B and -H).
        video_temporal_patch_size: Frames that one patch of video spans, with a projection of its own; `None` has none,
            and each frame of a clip is then an image.
    """

    num_channels: int = 3
    patch_size: int = 16
    image_size: int = 224
    max_img_size: int = 2048
    max_resolution: int | None = None
    preferred_resolution: Integers = (512, 512)
    norm_mean: Numbers = tuple(OPENAI_CLIP_MEAN)
    norm_std: Numbers = tuple(OPENAI_CLIP_STD)
    use_cropped_positions: bool = True
    pos_embed_align_corners: bool = False
    video_temporal_patch_size: int | None = None

    @property
    def resolution_step(self) -> int:
        """Pixels that height and width of an image must be multiples of: the coarsest level's stride, else a patch.

        A coarser map of another size would not lie on the grid of the features.
        """
        if self.wrapped is not None:
            return max(self.wrapped["strides"])
        return self.patch_size if self.eradio is None else 2 * self.patch_size

    @property
    def largest_side(self) -> int:
        """Largest accepted height or width in pixels."""
        return self.max_resolution or self.max_img_size

    def nearest_resolution(self, height: int, width: int) -> Resolution:
        """Return the valid size nearest to `height` x `width` pixels."""
        return nearest_multiple(height, width, self.resolution_step, self.largest_side)

    def check_resolution(self, height: int, width: int, argument: str = "pixel_values") -> None:
        """Refuse a size that the network cannot take; `argument` has it.

        Raises:
            ValueError: If a side is no positive multiple of the patch size or too large. The message names the nearest.
        """
        check_multiple(f"`{argument}`", height, width, self.resolution_step, self.largest_side)

    @property
    def position_grid_size(self) -> int:
        """Rows (and columns) of the position table."""
        return self.max_img_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch of an image, which transformers' native class reads."""
        return self.num_channels * self.patch_size**2

    def validate_pixels(self) -> None:
        """Refuse sizes without a patch, and a standardization of other channels than the image has."""
        check_range(self, 1, LARGEST, "num_channels", "patch_size", "image_size", "max_img_size", "max_resolution")
        check_range(self, 1, LARGEST, "preferred_resolution")
        check_range(self, 2, LARGEST, "video_temporal_patch_size")
        check_range(self, -LARGEST, LARGEST, "norm_mean")
        # Our choice of a bound: smaller ones make pixels so large that their squares overflow.
        check_range(self, 1e-6, LARGEST, "norm_std")
        if len(self.preferred_resolution) != 2:
            raise ValueError(f"`preferred_resolution` must be two integers, got {self.preferred_resolution!r:.200}.")
        check_step("max_img_size", self.max_img_size, self.patch_size, of="`patch_size`")
        if self.max_resolution is not None and self.max_resolution < self.patch_size:
            raise ValueError(
                f"`max_resolution` must be None or at least `patch_size` ({self.patch_size}), got "
                f"{self.max_resolution}."
            )
        for name in ("norm_mean", "norm_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(
                    f"`{name}` must have `num_channels` ({self.num_channels}) numbers, got {getattr(self, name)!r:.99}."
                )


@dataclass(kw_only=True, repr=False)
class Radio1dFields(PixelFields):
    """RADIO1D: merging of tokens in the encoder, and the decoder that makes a map of them.

    Attributes:
        downscale_levels: 0-based blocks before which each 2 x 2 patches become one token of twice the width, ascending;
            `None` is the plain network, to which none of the other fields here applies.
        merged_intermediate_sizes: Hidden width of the MLP behind each merging; `None` doubles it each time.
        qk_norm: Layer norm of queries and keys in the encoder.
        progressive_reduction: Cut the tokens down to `num_tokens` block by block after the last merging, so that
            outputs depend on how many are asked for; without, fewer tokens are the first ones of all.
        decoder_depth: Blocks of the decoder.
        decoder_upscale_levels: 0-based blocks of the decoder before which each token becomes 2 x 2 of half the width,
            ascending, one for each merging; `None` spreads them evenly, which for one merging is the middle.
        filler_grid_size: Rows and columns of the table of learned tokens that the decoder puts in place of missing
            ones; `None` spans `max_img_size`.
        num_tokens: Global tokens of each image that go through the decoder where a call does not say; `None` is all.
    """

    downscale_levels: Integers | None = None
    merged_intermediate_sizes: Integers | None = None
    qk_norm: bool = False
    progressive_reduction: bool = False
    decoder_depth: int = 6
    decoder_upscale_levels: Integers | None = None
    filler_grid_size: int | None = None
    num_tokens: int | None = None

    @property
    def num_mergings(self) -> int:
        """Number of mergings of 2 x 2 tokens into one; 0 in the plain network."""
        return len(self.downscale_levels or [])

    @property
    def global_hidden_size(self) -> int:
        """Width of the tokens behind the last merging."""
        return self.hidden_size << self.num_mergings

    @property
    def splitting_blocks(self) -> Sequence[int]:
        """Blocks of the decoder before which tokens are split, ascending."""
        if self.decoder_upscale_levels is not None:
            return self.decoder_upscale_levels
        parts = self.num_mergings + 1
        return [self.decoder_depth * part // parts for part in range(1, parts)]

    @property
    def filler_side(self) -> int:
        """Rows and columns of the table of fillers."""
        return self.filler_grid_size or max(self.position_grid_size >> self.num_mergings, 1)

    @property
    def full_grid_blocks(self) -> list[int]:
        """Blocks that heads can read: one token of `hidden_size` a patch. The last one stands for the decoder."""
        last = self.num_hidden_layers - 1
        return [block for block in range(self.num_hidden_layers) if block == last or self.count_merges(block) == 0]

    def count_merges(self, block: int) -> int:
        """Return how many mergings stand before the end of a 0-based block."""
        return sum(level <= block for level in self.downscale_levels or [])

    def block_hidden_size(self, block: int) -> int:
        """Return the width of the tokens behind a 0-based block."""
        return self.hidden_size << self.count_merges(block)

    def merged_intermediate_size(self, merges: int) -> int:
        """Return the hidden width of the MLP behind so many mergings."""
        if merges and self.merged_intermediate_sizes is not None:
            return self.merged_intermediate_sizes[merges - 1]
        return self.intermediate_size << merges

    def decoder_heads(self, splits: int) -> int:
        """Return the attention heads of the decoder behind so many splittings; it starts with `num_attention_heads`."""
        return max(self.num_attention_heads >> splits, 1)

    def block_grid(self, grid: Resolution, block: int) -> Resolution:
        """Return rows and columns of tokens behind a 0-based block; odd ones are filled up before they are merged."""
        scale = 2 ** self.count_merges(block)
        # Sizes are symbols under export, where ONNX rounds quotients of negative numbers up.
        return Resolution((grid.height + scale - 1) // scale, (grid.width + scale - 1) // scale)

    def count_global_tokens(self, grid: Resolution) -> int:
        """Return how many tokens an image can have at most; those that only filled up odd grids do not count."""
        return grid.height * grid.width // 4**self.num_mergings

    def check_read_blocks(self, name: str, blocks: Sequence[int] | None, *, count: int | None = None) -> None:
        """Refuse blocks that a head cannot read: it needs one token a patch.

        Args:
            name: The field that lists them.
            blocks: 0-based blocks; `None` is always right.
            count: See `check_blocks`.

        Raises:
            ValueError: If there is no such block, or if one stands behind a merging and is not the last.
        """
        if blocks is None:
            return
        check_blocks(name, blocks, self.num_hidden_layers, count=count)
        full = self.full_grid_blocks
        wrong = [block for block in blocks if block not in full]
        if wrong:
            nearest = min(full, key=lambda block: abs(block - wrong[0]))
            raise ValueError(
                f"`{name}` must be among {full}, before the tokens are merged, or the last, which stands for the "
                f"decoder, got {list(blocks)}. The nearest to {wrong[0]} is {nearest}."
            )

    def validate_merging(self) -> None:
        """Refuse mergings and a decoder that cannot be built, or fields that are set for nothing."""
        check_range(self, 1, LARGEST, "merged_intermediate_sizes", "filler_grid_size")
        check_range(self, 0, LARGEST, "num_tokens")
        check_range(self, 1, MOST_BLOCKS, "decoder_depth")
        check_range(self, 0, MOST_BLOCKS, "downscale_levels", "decoder_upscale_levels")
        if not self.downscale_levels:
            for name, default in (("qk_norm", False), ("progressive_reduction", False), ("num_tokens", None)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"`{name}` must be {default} without `downscale_levels`, got {getattr(self, name)}: this "
                        "network has one token for each patch."
                    )
            return
        check_blocks("downscale_levels", self.downscale_levels, self.num_hidden_layers)
        count, levels = self.num_mergings, self.splitting_blocks
        is_ascending = levels == sorted(set(levels)) and all(0 <= level < self.decoder_depth for level in levels)
        if len(levels) != count or not is_ascending:
            raise ValueError(
                f"`decoder_upscale_levels` must be {count} ascending blocks in [0, {self.decoder_depth}), one for each "
                f"of `downscale_levels`, got {levels}."
            )
        for splits in range(count + 1):
            width, heads = self.global_hidden_size >> splits, self.decoder_heads(splits)
            if width % heads:
                raise ValueError(
                    f"`num_attention_heads` must leave heads that divide the decoder's width, got {heads} for {width} "
                    f"after {splits} splittings."
                )
        if self.merged_intermediate_sizes is not None and len(self.merged_intermediate_sizes) != count:
            raise ValueError(
                f"`merged_intermediate_sizes` must have one width for each of `downscale_levels` ({count}), got "
                f"{self.merged_intermediate_sizes}."
            )
        if self.use_swiglu_ffn:
            raise ValueError("`use_swiglu_ffn` must be False with `downscale_levels`, got True.")


@dataclass(kw_only=True, repr=False)
class WindowFields(Radio1dFields):
    """ViTDet mode: attention in windows, but for a few global blocks.

    Attributes:
        vitdet_window_size: Default window in tokens for ViTDet mode; `None` is global attention.
        vitdet_num_global: Blocks with global attention in ViTDet mode, evenly spread (the last one always is). More
            than half the number of blocks makes all global, so that windows change nothing.
        vitdet_num_windowed: Windowed blocks between two global ones; overrides `vitdet_num_global`.
    """

    vitdet_window_size: int | None = None
    vitdet_num_global: int = 4
    vitdet_num_windowed: int | None = None

    @property
    def has_windowed_blocks(self) -> bool:
        """True if ViTDet mode changes anything: not in a network that is too shallow, nor where tokens are merged."""
        return not self.downscale_levels and not all(map(self.is_global_block, range(self.num_hidden_layers)))

    @property
    def global_blocks(self) -> list[int]:
        """Blocks that attend globally in ViTDet mode, ascending.

        Behind a merging the last block alone counts: the decoder makes one token a patch of its output.
        """
        return [block for block in self.full_grid_blocks if self.is_global_block(block)] or self.full_grid_blocks[-1:]

    def is_global_block(self, index: int) -> bool:
        """True if block `index` (0-based) attends globally in ViTDet mode (C-RADIOv4 3.2).

        The blocks are cut into periods whose last block is global; the very last block always is.
        """
        chosen, windowed = (self.navit or {}).get("global_blocks"), self.vitdet_num_windowed
        period = max(self.num_hidden_layers // self.vitdet_num_global, 1) if windowed is None else windowed + 1
        is_last = index % period == period - 1 or index == self.num_hidden_layers - 1
        return is_last if chosen is None else index in chosen

    def validate_windows(self) -> None:
        """Refuse windows without a token, or where tokens are merged."""
        check_range(self, 1, LARGEST, "vitdet_window_size", "vitdet_num_global")
        check_range(self, 0, LARGEST, "vitdet_num_windowed")
        if self.vitdet_window_size is not None and self.downscale_levels:
            raise ValueError(
                f"`vitdet_window_size` must be None with `downscale_levels`, got {self.vitdet_window_size}. Merged "
                "tokens have no windows."
            )


@dataclass(kw_only=True, repr=False)
class HeadFields(WindowFields):
    """Heads for images and pixels, and the classes of all heads.

    Attributes:
        classifier_pooling: Input of the image classifier: `"summary"`, or `"summary_and_features"`, which adds the
            mean of the features.
        segmentation_head: `"linear"`, batch norm and one linear layer on the features (the papers' probe), or `"dpt"`,
            a convolutional decoder over four blocks.
        class_weights: Weight of each class in the loss of image classification and semantic segmentation; `None`
            weighs all alike. Regression does not use them.
        temperature: Divisor of the logits of image classification where a pipeline makes probabilities of
            them; fitted after training.
        score_thresholds: Least score of each class for which the pipelines of objects and instances, and with
            `threshold="tuned"` of image classification, name it; `None` where none were fitted.
        semantic_loss_ignore_index: Label of pixels that semantic segmentation does not train on.
        dpt_indices: 0-based blocks that DPT's decoder reads, four in ascending order; `None` spreads them evenly over
            those with global attention in ViTDet mode, so that the borders of windows do not show; for B, L, H and g
            those are the quarters of the depth.
        dpt_hidden_size: Channels of that decoder, an even number.
    """

    classifier_pooling: Literal["summary", "summary_and_features"] = "summary"
    segmentation_head: Literal["linear", "dpt"] = "linear"
    class_weights: Numbers | None = None
    temperature: Number = 1.0
    score_thresholds: Numbers | None = None
    semantic_loss_ignore_index: int = 255  # transformers' value for segmentation, after the masks of VOC and ADE20k
    dpt_indices: Integers | None = None
    dpt_hidden_size: int = 256  # as in DPT, https://arxiv.org/abs/2103.13413
    # transformers' own, which does not check the types of these
    id2label: dict[Any, Any] | None = None
    label2id: dict[str, int] | dict[str, str] | None = None
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None

    @property
    def dpt_blocks(self) -> Sequence[int]:
        """The four blocks that DPT heads read, ascending; architectures of fewer global blocks repeat some."""
        if self.dpt_indices is not None:
            return self.dpt_indices
        blocks = self.global_blocks
        return [blocks[max(len(blocks) * quarter // 4 - 1, 0)] for quarter in range(1, 5)]

    @property
    def num_labels(self) -> int | None:
        """Number of classes."""
        return len(self.id2label) if self.id2label is not None else None

    @num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        COUNT.check("num_labels", num_labels)
        if self.num_labels != num_labels:
            self._forget_fitted(num_labels)
            self.id2label = {index: f"LABEL_{index}" for index in range(num_labels)}
            self.label2id = {name: index for index, name in self.id2label.items()}

    def _forget_fitted(self, num_labels: int) -> None:
        """Forget what was fitted to the classes, but for lists that fit so many."""
        if self.num_labels is not None:
            self.temperature = 1.0
            for name in FITTED_LISTS:
                if len(getattr(self, name) or ()) != num_labels:
                    setattr(self, name, None)

    def _stale_of_classes(self, changed: Mapping[str, Any]) -> set[str]:
        """Return what cannot stay where the number of classes changes."""
        names = changed.get("id2label")
        num_labels = len(names) if isinstance(names, Mapping) else changed.get("num_labels", self.num_labels)
        if self.num_labels in (None, num_labels):
            return set()
        fitting = {name for name in FITTED_LISTS if len(getattr(self, name) or ()) == num_labels}
        return {*FITTED, *(() if "id2label" in changed else LABELS)} - fitting

    def validate_labels(self) -> None:
        """Refuse classes that are not numbered from 0 on."""
        if not _are_labels(self.id2label):
            raise ValueError(
                f"`id2label` must be a mapping of the classes 0, 1, ... to their names, got {self.id2label!r:.200}."
            )

    def validate_heads(self) -> None:
        """Refuse heads that cannot be built, or that read blocks which the trunk has not."""
        check_range(self, 2, LARGEST, "dpt_hidden_size")
        check_range(self, -LARGEST, LARGEST, "semantic_loss_ignore_index")
        check_range(self, 0, LARGEST, "class_weights")
        check_range(self, 0, 1, "score_thresholds")
        check_range(self, 0, 1000, "temperature", open_low=True)
        if self.class_weights is not None and not any(self.class_weights):
            raise ValueError(f"`class_weights` must be numbers of at least 0 and not all 0, got {self.class_weights}.")
        check_step("dpt_hidden_size", self.dpt_hidden_size, 2)
        self.check_read_blocks("dpt_indices", self.dpt_indices, count=4)


@dataclass(kw_only=True, repr=False)
class DetectionFields(WindowFields):
    """The detector, which also finds instances.

    Attributes:
        detection_indices: 0-based blocks that the detector reads; `None` means those with global attention in ViTDet
            mode, so that the borders of windows do not show.
        detection_hidden_size: Width of the detector, a multiple of 32.
        detection_num_layers: Layers of the detector's decoder.
        detection_num_queries: Largest number of objects found in an image, and smallest number of patches of one.
        detection_num_groups: Groups of queries in training (Group DETR); more learn faster and cost more, 1 is plain.
        detection_window_size: Window that the detection models run the backbone in, as `window_size` of their
            `forward`; `None` takes `vitdet_window_size`.
    """

    detection_indices: Integers | None = None
    detection_hidden_size: int = 256  # this and the layers as in RF-DETR, https://arxiv.org/abs/2511.09554
    detection_num_layers: int = 3
    detection_num_queries: int = 100  # our choice: COCO's metric counts 100 an image; RF-DETR's 300 need 280 px
    detection_num_groups: int = 5  # our choice: RF-DETR has 13 for COCO; on few images 5 did as well in half the time
    # Our choice: of the trained windows nearest to ViTDet's 14.
    detection_window_size: int | Literal["auto", "global"] | None = 16

    @property
    def detection_blocks(self) -> Sequence[int]:
        """Blocks that the detector reads, ascending."""
        return self.global_blocks if self.detection_indices is None else self.detection_indices

    def validate_detection(self) -> None:
        """Refuse a detector that cannot be built, or that reads blocks which the trunk has not."""
        check_range(self, 1, MOST_BLOCKS, "detection_num_layers")
        check_range(self, 1, LARGEST, "detection_num_queries", "detection_num_groups")
        check_range(self, 32, LARGEST, "detection_hidden_size")
        check_step("detection_hidden_size", self.detection_hidden_size, 32)
        if isinstance(self.detection_window_size, int):
            check_range(self, 1, LARGEST, "detection_window_size")
        self.check_read_blocks("detection_indices", self.detection_indices)


@dataclass(kw_only=True, repr=False)
class MapFields(WindowFields, BackboneConfigMixin):
    """Maps that `RadioBackbone` returns.

    Attributes:
        use_feature_pyramid: Whether `RadioBackbone` returns maps at strides 1/4, 1/2, 1 and 2 patches, "p2" to "p5",
            instead of block outputs, "stem" (the patch embedding), "stage1" (the first block) and so on; it reads
            `out_features` or `out_indices`.
        feature_pyramid_size: Channels of those maps.
        reshape_hidden_states: Whether `RadioBackbone` gives maps; `False` is for heads that read sequences, DPT's and
            Depth Anything's.
    """

    use_feature_pyramid: bool = False
    feature_pyramid_size: int = 256  # as in ViTDet, https://arxiv.org/abs/2203.16527
    reshape_hidden_states: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    @property
    def stage_names(self) -> list[str]:
        """Names of all maps of `RadioBackbone`."""
        if self.use_feature_pyramid:
            return ["p2", "p3", "p4", "p5"]
        return ["stem", *(f"stage{index + 1}" for index in range(self.num_hidden_layers))]

    @property
    def default_stages(self) -> list[str]:
        """Maps that `RadioBackbone` returns where none are chosen: the whole pyramid, or the last block's."""
        return self.stage_names if self.use_feature_pyramid else self.stage_names[-1:]

    def choose_stages(self, out_features: Any = None, out_indices: Any = None) -> None:
        """Choose maps, by name or by number; without both the default ones.

        Raises:
            ValueError: If there is no such map, or they are not in order.
        """
        for name, value, kind in (("out_features", out_features, str), ("out_indices", out_indices, int)):
            if value is not None and not (
                isinstance(value, list | tuple) and all(type(each) is kind for each in value)
            ):
                raise ValueError(f"`{name}` must be a list of {kind.__name__} or None, got {value!r:.200}.")
        if out_features is None and out_indices is None:
            out_features = self.default_stages
        chosen = (None if entries is None else list(entries) for entries in (out_features, out_indices))
        self.set_output_features_output_indices(*chosen)
        if self._out_features == self.default_stages:  # which may be others later
            self._out_features = self._out_indices = None

    @property
    def out_features(self) -> list[str]:
        """Names of the maps that `RadioBackbone` returns."""
        return self.default_stages if self._out_features is None else self._out_features

    @out_features.setter
    def out_features(self, out_features: Any) -> None:
        self.choose_stages(out_features=out_features)

    @property
    def out_indices(self) -> list[int]:
        """Their indices in `stage_names`."""
        return [self.stage_names.index(name) for name in self.out_features]

    @out_indices.setter
    def out_indices(self, out_indices: Any) -> None:
        self.choose_stages(out_indices=out_indices)

    def validate_stages(self) -> None:
        """Refuse maps of `RadioBackbone` that cannot be made."""
        check_range(self, 1, LARGEST, "feature_pyramid_size")
        self.verify_out_features_out_indices()
        if self.use_feature_pyramid and not self.reshape_hidden_states:
            raise ValueError("`reshape_hidden_states` must be True with `use_feature_pyramid`, got False.")
        if self.use_feature_pyramid and self.hidden_size < 4:
            raise ValueError(
                f"`hidden_size` must be at least 4 with `use_feature_pyramid`, whose finest map has a quarter of it, "
                f"got {self.hidden_size}."
            )
        # E-RADIO's levels have other widths: its backbone gives the final features. Others give fused levels.
        stages = self.stage_names[-1:] if self.eradio is not None else self.stage_names[self.wrapped is not None :]
        if not self.use_feature_pyramid and not {*self.out_features} <= {*stages}:
            raise ValueError(f"`out_features` must be among {stages} for this network, got {self.out_features}.")


@dataclass(kw_only=True, repr=False)
class AdaptorFields(TrunkFields):
    """Adaptors to the output spaces of teachers.

    Attributes:
        adaptors: One JSON object per adaptor, fields as in `RadioAdaptorConfig`.
        adaptor_names: Adaptors whose outputs `forward` returns by default; `None` means all of `adaptors`.
        nvidia_outputs: Whether `RadioModel.forward` returns pairs, as NVIDIA's does, where a call does not say.
    """

    adaptors: list[dict[str, Any]] | tuple[dict[str, Any], ...] = field(default_factory=list)
    adaptor_names: list[str] | tuple[str, ...] | None = None
    nvidia_outputs: bool = False

    @property
    def adaptor_configs(self) -> list[RadioAdaptorConfig]:
        """`adaptors` as typed objects."""
        return [RadioAdaptorConfig.from_dict(adaptor) for adaptor in self.adaptors]

    def adaptor(self, name: str, *, argument: str = "adaptor_names") -> RadioAdaptorConfig:
        """Return the adaptor of a name.

        Args:
            name: Name of the teacher, such as `"siglip2-g"`.
            argument: Argument that holds that name, as the user wrote it; the message begins with it.

        Raises:
            ValueError: If the adaptor is unknown. The message lists all adaptors and suggests the nearest.
        """
        adaptors = {adaptor.name: adaptor for adaptor in self.adaptor_configs}
        check_choice(argument, name, adaptors)
        return adaptors[name]

    @property
    def all_adaptor_names(self) -> list[str]:
        """Names of all adaptors, which run where none are chosen."""
        return [adaptor["name"] for adaptor in self.adaptors]

    def validate_adaptors(self) -> None:
        """Refuse adaptors of one name, unknown ones that are chosen, and heads that do not divide the width."""
        adaptors = self.adaptor_configs
        names = [adaptor.name for adaptor in adaptors]
        if len(set(names)) < len(names):
            raise ValueError(f"`adaptors` must have distinct names, got {names}.")
        for name in self.adaptor_names or []:
            if name not in names:
                raise ValueError(
                    f"`adaptor_names` must name some of `adaptors`, {names}, got {name!r}.{did_you_mean(name, names)}"
                )
        for adaptor in adaptors:
            if adaptor.feature_head == "attention" and self.hidden_size % adaptor.feature_num_attention_heads:
                raise ValueError(
                    f"`adaptors.{adaptor.name}.feature_num_attention_heads` must divide `hidden_size` "
                    f"({self.hidden_size}), got {adaptor.feature_num_attention_heads}."
                )

    def validate_tokens_of_adaptors(self) -> None:
        """Refuse tokens that no summary head reads: other ones than class tokens, in NVIDIA's files up to a patch.

        `validate_tokens` runs before it.
        """
        of_nvidia = self.nvidia_source is not None
        what = "up to the first patch" if of_nvidia else "the class tokens"
        end = self.num_prefix_tokens + 1 if of_nvidia else self.num_cls_tokens
        for adaptor in self.adaptor_configs:
            if not 0 <= adaptor.token_index < end:
                raise ValueError(
                    f"`adaptors.{adaptor.name}.token_index` must lie in [0, {end}), {what}, got {adaptor.token_index}."
                )


@dataclass(kw_only=True, repr=False)
class TextFields(AdaptorFields):
    """The text tower of an adaptor's teacher.

    Attributes:
        text_tower: Configuration of a text tower, a JSON object: of a teacher as transformers writes it for a SigLIP,
            SigLIP2 or CLIP text model, or of a `SentenceTower`; `None` where there is none.
        text_adaptor: The adaptor whose summary is compared with that tower's texts, and given by `get_image_features`.
        text_cleaning: Cleaning of texts before the tokenizer: "ftfy" as for PE-Core, see `texts_radio.py`; `None`
            where the tokenizer does all.
    """

    text_tower: dict[str, Any] | None = None
    text_adaptor: str | None = None
    text_cleaning: Literal["ftfy"] | None = None

    @property
    def projection_dim(self) -> int:
        """Width of the vectors of `get_image_features`, under the name that CLIP's callers read."""
        widths = {adaptor["name"]: adaptor["summary_dim"] for adaptor in self.adaptors}
        return widths.get(self.text_adaptor) or self.hidden_size * len(self.summary_idxs or [])

    def validate_texts(self) -> None:
        """Refuse what `config.json` cannot hold; the tower's own class reads the rest."""
        check_json(self, "text_tower")


@with_value_errors
@strict
class RadioConfig(DetectionFields, HeadFields, MapFields, TextFields, PreTrainedConfig):
    r"""Shape of a RADIO backbone, its adaptors and the heads of the task models.

    A class for each concern has its fields, their description and their checks: `OriginFields`, `TrunkFields`,
    `PixelFields`, `Radio1dFields`, `WindowFields`, `HeadFields`, `DetectionFields`, `MapFields`, `AdaptorFields` and
    `TextFields`. Here they become one configuration that is read, overridden and saved.

    In `config.json` all fields lie flat side by side. Those of transformers' native `RadioConfig` keep their names, so
    that the same file opens natively without `trust_remote_code`; the rest is ours. Setting a field later changes no
    other field: to have those that follow from it computed again, give it to `from_pretrained` or `from_preset`.

    Raises:
        ValueError: If a field is of another type or impossible, or two contradict each other; the message names them.

    References:
        C-RADIOv4 tech report, https://arxiv.org/abs/2601.17237; RADIO1D, https://arxiv.org/abs/2607.03624
    """

    model_type = "radio"

    # transformers' own, as in `HeadFields`
    transformers_version: str | None = None
    architectures: list[str] | None = None
    output_hidden_states: bool | None = False
    return_dict: bool | None = True
    dtype: str | torch.dtype | None = None
    chunk_size_feed_forward: int = 0
    is_encoder_decoder: bool = False

    presets = PresetNames()

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_names(kwargs)
        self._warn_on_typos(kwargs)
        self._check_arguments(kwargs)
        self.intermediate_size, self.mlp_ratio = self._mlp_width()
        self.norm_mean, self.norm_std = list(self.norm_mean), list(self.norm_std)
        self.preferred_resolution = list(self.preferred_resolution)
        self.adaptors = [dataclasses.asdict(adaptor) for adaptor in self.adaptor_configs]
        kwargs.pop("stage_names", None)
        self.choose_stages(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)
        self._replace_none()

    def _replace_none(self) -> None:
        if self.summary_idxs is None:
            self.summary_idxs = list(range(min(2, self.num_cls_tokens)))
        if self.adaptor_names is None:
            self.adaptor_names = self.all_adaptor_names
        names: Any = self.id2label
        if not self.label2id and _are_labels(names):
            self.label2id = {name: int(number) for number, name in names.items()}
        self.architectures = self.architectures or []  # Auto classes that have two classes to choose from iterate

    def check(self) -> None:
        """Refuse what cannot be built; models call it, since fields may have been set one by one."""
        for each in dataclasses.fields(self):
            setattr(self, each.name, getattr(self, each.name))  # a list may have been changed in place
        self._replace_none()
        self.validate()  # pyrefly: ignore[missing-attribute]

    # Reading and writing

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "RadioConfig":
        """Return the configuration of a published architecture, or of one of our small ones.

        Args:
            name: Name such as `"c-radio_v4-h"`; `RadioConfig.presets` lists all.
            overrides: Fields to change, for example `vitdet_window_size=8`.

        Returns:
            A new configuration. It holds no adaptors unless `adaptors` is given.

        Raises:
            ValueError: If no preset has this name, or an override is no field.
        """
        presets = import_sibling("presets_radio").PRESETS
        check_choice("preset", name, presets)
        cls.check_fields(overrides)
        return cls(**cls._override({**copy.deepcopy(presets[name]), "version": name}, overrides))

    @classmethod
    def check_fields(cls, names: Iterable[str]) -> None:
        """Refuse what is no field of a configuration.

        Raises:
            ValueError: If a name is unknown; the message suggests the nearest.
        """
        known = cls._known_fields()
        for name in names:
            if name not in known:
                raise ValueError(f"Unknown configuration field {name!r}.{did_you_mean(name, known)}")

    @classmethod
    def _known_fields(cls) -> list[str]:
        fields = [each.name for each in dataclasses.fields(cls) if not each.name.startswith("_")]
        return [*fields, *OTHER_ARGUMENTS]

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a folder's `config.json`; for a pipeline that was asked for without a task, with the folder's own."""
        is_to_infer = kwargs.get("_from_pipeline", "") is None
        args = given = tuple(map(find_builtin, args))
        kwargs |= need_cached(args[0], kwargs) if args else {}
        for layout in FOREIGN_LAYOUTS if args else []:
            args = (layout.place(args[0], kwargs), *args[1:])
        kwargs = kwargs if args == given else {**kwargs, "subfolder": ""}
        values, others = super().get_config_dict(*args, **kwargs)
        remember_folder(args[0] if args else kwargs.get("pretrained_model_name_or_path"), kwargs)
        check_file(values)
        if is_to_infer and "custom_pipelines" in values:
            values = values | {"custom_pipelines": import_sibling("tasks_radio").own_pipeline(values)}
        return values, others

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "RadioConfig":
        """Build one from a parsed `config.json`, ours or one of `FOREIGN_LAYOUTS`.

        Args:
            config_dict: The parsed file.
            kwargs: Fields in place of the file's, and what transformers takes here. What followed from a field that is
                given, such as `intermediate_size` from `hidden_size`, follows from the new one.
        """
        check_file(config_dict)  # which may be a caller's own; a folder's was checked where it was read
        for layout in FOREIGN_LAYOUTS:
            if layout.describes(config_dict):
                given = {"version": kwargs["version"]} if kwargs.get("version") else {}  # which may not be in the file
                config_dict = layout.fields({**config_dict, **given}, kwargs.get("adaptor_names"))
        for name in ("dtype", "torch_dtype"):
            if isinstance(kwargs.get(name), str) and kwargs[name] == "auto":  # that of the file
                del kwargs[name]
        config_dict = {name: value for name, value in config_dict.items() if name not in NATIVE_FIELDS}
        # transformers sets overrides one by one on the finished configuration, but for two: too late where they go
        # together, and unchecked.
        names = [name for name in cls._known_fields() if name not in ("dtype", "attn_implementation")]
        overrides = {name: kwargs.pop(name) for name in names if name in kwargs}
        if isinstance(overrides.get("adaptor_names"), (list, tuple)):
            adaptors = overrides.get("adaptors") or config_dict.get("adaptors") or []
            known = [str(adaptor.get("name")) for adaptor in adaptors if isinstance(adaptor, dict)]
            overrides["adaptor_names"] = own_names("adaptor_names", overrides["adaptor_names"], known)
        return super().from_dict(cls._override(config_dict, overrides), **kwargs)

    @classmethod
    def of(cls, config: Any) -> "RadioConfig":
        """Return a configuration that our models are built from: itself, or what transformers' native one says.

        Raises:
            ValueError: If it is the configuration of something else.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, PreTrainedConfig) or config.model_type != cls.model_type:
            raise ValueError(f"`config` must be a RadioConfig, got a {type(config).__name__}.")
        # transformers runs one copy of a local folder's file for AutoConfig and another one for each model class.
        remember_folder(config.name_or_path, {})
        return cls.from_dict(
            config.to_dict(), name_or_path=config.name_or_path, attn_implementation=config._attn_implementation
        )

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save `config.json`, with the source files that `trust_remote_code` runs.

        They lie there before transformers uploads the folder where it is asked to.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        saving = import_sibling("saving_radio")
        saving.copy_source_files(save_directory, self.architectures)
        saving.write_modules(save_directory, has_text_tower=self.text_tower is not None)
        super().save_pretrained(save_directory, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields alone: inside another model's configuration an `auto_map` would point to no files."""
        values = super().to_dict()
        if self._out_features is not None:  # without them a copy takes other ones
            values |= {"out_features": self.out_features, "out_indices": self.out_indices}
        return {name: value for name, value in values.items() if name not in ("auto_map", "custom_pipelines")}

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write `config.json`, with the complete `auto_map` and what the pipelines need."""
        entries = import_sibling("saving_radio").auto_map_entries
        fields = self.to_diff_dict() if use_diff else self.to_dict()
        fields |= entries(self.architectures, has_text_tower=self.text_tower is not None)
        Path(json_file_path).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def without_adaptors(self) -> "RadioConfig":
        """Return a copy that describes a backbone alone: without adaptors, and without the text tower of one."""
        config = self.without_text_tower()
        config.adaptors, config.adaptor_names, config.text_adaptor = [], [], None
        return config

    def without_text_tower(self) -> "RadioConfig":
        """Return a copy that describes a backbone with its adaptors only, and which of them is for texts."""
        config = copy.deepcopy(self)
        config.text_tower = config.text_cleaning = None
        return config

    @classmethod
    def _override(cls, fields: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Return `fields` with `overrides`, without the values that were computed from overridden fields."""
        if not overrides:
            return fields
        optional(COUNT).check("num_labels", overrides.get("num_labels"))
        names: Any = overrides.get("id2label")
        if _are_labels(names):
            overrides = {"label2id": None, **overrides}  # follows from the names
        stale = cls(**fields)._stale_fields(overrides)
        return {**{name: value for name, value in fields.items() if name not in stale}, **overrides}

    def _stale_fields(self, changed: Mapping[str, Any]) -> set[str]:
        """Return the fields that are computed from changed ones, but for those that were set themselves."""
        stale = self._stale_of_classes(changed)
        if not {"hidden_size", "mlp_ratio"}.isdisjoint(changed):
            stale.add("intermediate_size")
        if "intermediate_size" in changed:
            stale.add("mlp_ratio")
        if "adaptors" in changed and self.adaptor_names == self.all_adaptor_names:
            stale.add("adaptor_names")
        has_other_stages = not {"num_hidden_layers", "use_feature_pyramid"}.isdisjoint(changed)
        is_default = self.out_features == self.default_stages
        if (has_other_stages and is_default) or not {"out_features", "out_indices"}.isdisjoint(changed):
            stale |= {"out_features", "out_indices"}
        return stale - set(changed)

    # Checks of what is given

    @classmethod
    def _check_names(cls, names: Iterable[str]) -> None:
        """Refuse names of methods and of settings of the class: transformers would overwrite them with the value."""
        for name in names:
            own = inspect.getattr_static(cls, name, dataclasses.MISSING)
            is_set = isinstance(own, property) and own.fset is not None
            if own is not dataclasses.MISSING and not is_set and name not in ("model_type", "stage_names"):
                # Transformers' own composites, such as its Nemotron, build the class that is registered for "radio".
                hint = " Open transformers' own models with it before `import modeling_radio`."
                hint = hint if name in NATIVE_FIELDS else ""
                raise ValueError(f"`{name}` must be left out: it is no field of a configuration.{hint}")

    @classmethod
    def _warn_on_typos(cls, names: Iterable[str]) -> None:
        """Tell of names that are nearly those of fields: transformers keeps what it does not know without a word."""
        known = cls._known_fields()
        for name in names:
            meant = "" if name in known else did_you_mean(name, known, at_least=SLIP)
            if meant:
                warnings.warn(f"RadioConfig has no field {name!r}; it is ignored.{meant}", stacklevel=5)

    def _check_arguments(self, kwargs: Mapping[str, Any]) -> None:
        """Refuse what transformers would read before it is validated."""
        if self.id2label is not None:
            self.validate_labels()
        self.validate_dtype()
        check_range(self, 1, MOST_BLOCKS, "num_hidden_layers")
        num_labels = kwargs.get("num_labels")
        if num_labels is not None:
            COUNT.check("num_labels", num_labels)
        optional(FLAG).check("output_attentions", kwargs.get("output_attentions"))
        if self.problem_type == "single_label_classification" and (num_labels == 1 or len(self.id2label or "..") == 1):
            raise ValueError(f"`num_labels` must be at least 2 with `problem_type` {self.problem_type!r}, got 1.")

    def validate_output_attentions(self) -> None:
        """Refuse what is no flag. Unlike in transformers any attention is fine: calls that want weights use eager."""
        optional(FLAG).check("output_attentions", self.output_attentions)

    def validate_dtype(self) -> None:
        """Refuse a data type that is not of floating point."""
        dtype = self.dtype
        is_right = dtype.is_floating_point if isinstance(dtype, torch.dtype) else dtype in (None, *DTYPE_NAMES)
        if not is_right:
            raise ValueError(f"`dtype` must be a floating point type of torch or the name of one, got {dtype!r:.200}.")

    def validate_chunks(self) -> None:
        """Refuse a negative size of chunks."""
        check_range(self, 0, LARGEST, "chunk_size_feed_forward")


register_parts(RadioConfig)


def check_file(values: Mapping[str, Any]) -> None:
    """Refuse values of a parsed `config.json` that transformers would take without a check.

    Raises:
        ValueError: If a field of transformers' own is of another kind than it takes, or names kernels of a Hub
            repository, which are code.
    """
    architectures, auto_map = values.get("architectures"), values.get("auto_map", {})
    names = auto_map.values() if isinstance(auto_map, dict) else [None]
    rules = {
        "architectures": optional(listed(WORD)).holds(architectures),
        "auto_map": all(isinstance(name, str | list) for name in names),
        "custom_pipelines": isinstance(values.get("custom_pipelines", {}), dict),
        "quantization_config": isinstance(values.get("quantization_config"), dict | None),
        "transformers_weights": isinstance(values.get("transformers_weights"), str | None),
    }
    for name, value in values.items():
        is_kernel = name.endswith(("_implementation", "_implementation_internal")) and value is not None
        if not rules.get(name, True) or (is_kernel and not (isinstance(value, str) and "/" not in value)):
            raise ValueError(f"`{name}` must be what transformers writes there, got {value!r:.200}.")


def _are_labels(value: Any) -> bool:
    """True if a value maps the numbers from 0 on, or what JSON makes of them, to names."""
    if not isinstance(value, dict) or not value or not all(isinstance(name, str) for name in value.values()):
        return False
    are_numbers = all(type(key) is int or (isinstance(key, str) and key.isdecimal()) for key in value)
    return are_numbers and sorted(map(int, value)) == list(range(len(value)))


def _is_json(value: Any) -> bool:
    """True if a value can be written to `config.json`, where keys are sorted; labels' numbers may be keys too."""
    if isinstance(value, dict):
        has_one_type = any(all(type(key) is kind for key in value) for kind in (str, int))
        return has_one_type and all(map(_is_json, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (bool, int, float, str))
