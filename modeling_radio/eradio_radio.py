"""E-RADIO: NVIDIA's efficient backbone of convolutions and window attention, behind the same model classes.

It has four levels at strides 4, 8, 16 and 32: two of convolutions, then two of attention in windows. A neck joins the
last two into features at stride 16, and the mean of the features is the summary. Only folders with `eradio` in their
configuration import this file.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks_radio import (
    COUNT,
    FLAG,
    LARGEST,
    MOST_BLOCKS,
    Resolution,
    Rule,
    did_you_mean,
    integer,
    listed,
    number,
    optional,
)
from .configuration_radio import RadioConfig
from .inputs_radio import Call
from .modeling_radio import RadioNetwork
from .outputs_radio import NetworkOutput


POSITION_RANGE = 8
"""Scale of the coordinates that the position MLP reads (Swin v2, equation 4, and its code)."""
POSITION_BIAS = 16
"""Largest bias of a relative position (Swin v2's code)."""
STRIDE = 16
"""Pixels of the image for each token of the features along a side; the coarsest level has twice as many."""
_LEVELS = 4
_ATTENTION_LEVELS = (2, 3)

_WINDOW = Rule(
    "an integer of at least 1, or a list of equal ones",
    lambda value: COUNT.holds(value) or (listed(COUNT).holds(value) and len(set(value)) == 1),
)
_RATIO = Rule(
    "1, 2 or a list of these",
    lambda value: value in (1, 2) or (listed(integer(1, 2)).holds(value) and len(value) > 0),
)
_OFF = (None, False, [], {}, "")  # and 0, which equals False: values that turn an unknown argument off
_ANYTHING = Rule("anything", lambda value: True)


def _only(wanted: Any) -> Rule:
    return Rule(f"{wanted!r}, the only one that is built here", lambda value: value == wanted)


_RULES: dict[str, Rule] = {
    "dim": integer(2),
    "in_dim": COUNT,
    "depths": listed(integer(1, MOST_BLOCKS), _LEVELS),
    "num_heads": listed(COUNT, _LEVELS),
    "window_size": listed(_ANYTHING, _LEVELS),
    "mlp_ratio": number(f"(0, {LARGEST}]"),
    "sr_ratio": listed(_RATIO, _LEVELS),
    "cpb_mlp_hidden": COUNT,
    "full_features_head_dim": COUNT,
}
_FIXED: dict[str, Rule] = {
    "use_swiglu": _only(False),
    "yolo_arch": _only(True),
    "shuffle_down": _only(False),
    "conv_base": _only(True),
    "use_neck": _only(True),
    "neck_start_stage": _only(2),
    "return_full_features": _only(True),
    "drop_path_rate": number("[0, 1)"),  # ignored: it is for training
    "in_chans": _only(3),
    "num_classes": _ANYTHING,
    "resolution": _ANYTHING,
    "layer_scale": _only(None),
    "layer_scale_conv": _only(None),
    "qkv_bias": FLAG,  # ignored: NVIDIA's attention never has a bias
}


def check_eradio(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a network that cannot be built.

    Args:
        arguments: As in `eradio_arguments.json`.

    Raises:
        ValueError: It names the argument, its value and the rule.
    """
    for name in _RULES:
        if name not in arguments:
            raise ValueError(f"`eradio.{name}` must be given.")
    for name, value in arguments.items():
        rule = _RULES.get(name) or _FIXED.get(name)
        if rule is None and value in _OFF:
            continue
        if rule is None:
            raise ValueError(f"`eradio.{name}` is no argument of E-RADIO.{did_you_mean(name, [*_RULES, *_FIXED])}")
        rule.check(f"eradio.{name}", value)
    if arguments["dim"] % 2:
        raise ValueError(f"`eradio.dim` must be even, got {arguments['dim']}.")
    for level in _ATTENTION_LEVELS:
        _WINDOW.check(f"eradio.window_size[{level}]", arguments["window_size"][level])
        width, heads = arguments["dim"] * 2**level, arguments["num_heads"][level]
        if width % heads:
            raise ValueError(f"`eradio.num_heads[{level}]` must divide the level's width, {width}, got {heads}.")


def as_list(value: Any) -> list[Any]:
    """Return as a list an argument that is one value for a single attention block, or a list for several."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def trained_window(arguments: Mapping[str, Any], level: int) -> int:
    """Return the window in tokens that a level with attention was trained with."""
    return as_list(arguments["window_size"][level])[0]


def eradio_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `RadioConfig` for a network.

    The network has no class token. The mean of the features takes its place, so that heads and outputs are those of
    every other RADIO.
    """
    check_eradio(arguments)
    return {
        "eradio": dict(arguments),
        "hidden_size": arguments["full_features_head_dim"],
        "num_hidden_layers": sum(arguments["depths"]),
        "num_attention_heads": 1,
        "patch_size": STRIDE,
        "num_cls_tokens": 1,
        "num_registers": 0,
        "summary_idxs": [0],
    }


class ConvNorm(nn.Sequential):
    """Convolution without bias and batch norm, `(batch, in, rows, cols)` to `(batch, out, rows / stride, ...)`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)


class EradioStem(nn.Sequential):
    """Two convolutions that each halve the grid, to a quarter of the image's sides."""

    def __init__(self, num_channels: int, stem_width: int, width: int) -> None:
        super().__init__()
        self.conv_down = nn.Sequential(
            ConvNorm(num_channels, stem_width, stride=2), nn.ReLU(), ConvNorm(stem_width, width, stride=2), nn.ReLU()
        )


class EradioDownsampling(nn.Sequential):
    """A convolution that halves the grid and doubles the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = ConvNorm(width, 2 * width, stride=2)


class _Bottleneck(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvNorm(width, width), ConvNorm(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + F.silu(self.cv2(F.silu(self.cv1(maps))))


class EradioConvolutions(nn.Module):
    """YOLOv8's C2f: half of the channels go through `depth` bottlenecks; all intermediate maps are concatenated.

    References:
        https://docs.ultralytics.com/reference/nn/modules/block/
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(width, width, kernel_size=1)
        self.cv2 = ConvNorm((depth + 2) * width // 2, width, kernel_size=1)
        self.m = nn.ModuleList(_Bottleneck(width // 2) for _ in range(depth))

    def forward(self, maps: Tensor) -> Tensor:
        parts = list(F.silu(self.cv1(maps)).chunk(2, dim=1))
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        return F.silu(self.cv2(torch.cat(parts, dim=1)))


class EradioPositionBias(nn.Module):
    """Attention bias of each pair of tokens in a window, computed from their relative position by a small MLP.

    The MLP reads offsets on a logarithmic scale, in units of the window of its training, so it works for windows of any
    size.

    References:
        Swin Transformer V2, section 3.3. https://arxiv.org/abs/2111.09883
    """

    def __init__(self, num_heads: int, hidden_size: int, trained_window: int) -> None:
        super().__init__()
        self.trained_window = trained_window
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, hidden_size), nn.ReLU(), nn.Linear(hidden_size, num_heads, bias=False)
        )

    def coordinates(self, window: int) -> Tensor:
        """Return the MLP's input for each offset, `(2 * window - 1, 2 * window - 1, 2)`, rows before columns."""
        offsets = torch.arange(1 - window, window, dtype=torch.float32) / max(self.trained_window - 1, 1)
        offsets = offsets * POSITION_RANGE
        scaled = offsets.sign() * (offsets.abs() + 1).log2() / math.log2(POSITION_RANGE)
        return torch.stack(torch.meshgrid(scaled, scaled, indexing="ij"), dim=-1)

    @staticmethod
    def index(window: int) -> Tensor:
        """Return the index of each token pair's offset, `(window**2, window**2)`."""
        positions = torch.arange(window)
        row, col = (axis.flatten() for axis in torch.meshgrid(positions, positions, indexing="ij"))
        rows, cols = (axis[:, None] - axis[None, :] + window - 1 for axis in (row, col))
        return rows * (2 * window - 1) + cols

    def forward(self, window: int) -> Tensor:
        """Return the bias `(heads, window**2, window**2)`."""
        weight = self.cpb_mlp[0].weight
        coordinates = self.coordinates(window).to(weight)  # pyrefly: ignore[no-matching-overload]
        by_offset = self.cpb_mlp(coordinates).flatten(0, 1)
        bias = by_offset[self.index(window).to(by_offset.device)].permute(2, 0, 1)
        return POSITION_BIAS * bias.sigmoid()


class _WindowAttention(nn.Module):
    """Self-attention among the tokens of each window; input and output are `(windows, window**2, width)`."""

    def __init__(self, width: int, num_heads: int, position_hidden: int, trained_window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.pos_emb_funct = EradioPositionBias(num_heads, position_hidden, trained_window)

    def forward(self, tokens: Tensor, window: int) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.pos_emb_funct(window).to(query.dtype).unsqueeze(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Sequential):
    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_size, bias=False)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_size, width, bias=False)


class EradioAttentionBlock(nn.Module):
    """Attention in windows and an MLP on the map or on one of half its sides; the output is averaged with the input.

    Args:
        width: Channels.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP divided by `width`.
        position_hidden: Hidden width of the position MLP.
        trained_window: Window in tokens of the position MLP's training.
        ratio: 2 for a map of half the sides, 1 for the map itself.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, position_hidden: int, trained_window: int, ratio: int
    ) -> None:
        super().__init__()
        self.ratio = ratio
        if ratio == 1:
            self.pre_conv = ConvNorm(width, width)
        else:
            self.downsample_op = nn.Conv2d(width, width, kernel_size=ratio, stride=ratio)
            self.upsample_op = nn.ConvTranspose2d(width, width, kernel_size=ratio, stride=ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attn = _WindowAttention(width, num_heads, position_hidden, trained_window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, int(width * mlp_ratio))

    def forward(self, maps: Tensor, window: int) -> Tensor:
        scaled = self.pre_conv(maps) + maps if self.ratio == 1 else self.downsample_op(maps)
        rows, cols = (side // window for side in scaled.shape[-2:])
        grid = scaled.unflatten(3, (cols, window)).unflatten(2, (rows, window))
        # (batch, width, rows, window, cols, window) -> (windows, window**2, width)
        tokens = grid.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)
        tokens = tokens + self.attn(self.norm1(tokens), window)
        tokens = tokens + self.mlp(self.norm2(tokens))
        grid = tokens.unflatten(1, (window, window)).unflatten(0, (-1, rows, cols))
        mixed = grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return 0.5 * (mixed if self.ratio == 1 else self.upsample_op(mixed)) + 0.5 * maps


class EradioBlock(nn.Module):
    """One attention block for each ratio, one after the other; arguments are those of `EradioAttentionBlock`."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        position_hidden: int,
        trained_window: int,
        ratios: list[int],
    ) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            EradioAttentionBlock(width, num_heads, mlp_ratio, position_hidden, trained_window, ratio)
            for ratio in ratios
        )

    def forward(self, maps: Tensor, window: int) -> Tensor:
        for block in self.attention_blocks:
            maps = block(maps, window)
        return maps


class EradioNeckProjection(nn.Sequential):
    """One level's part of the features: upsampling, a depthwise convolution, batch norm and a 1 x 1 convolution."""

    def __init__(self, width: int, feature_width: int, factor: int) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=factor, mode="nearest") if factor > 1 else nn.Identity()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, feature_width, kernel_size=1)


LARGEST_WINDOW = 16
"""Largest window that NVIDIA's `set_optimal_window_size` chooses."""


class EradioLevel(nn.Module):
    """Blocks at one scale, and the downsampling to the next.

    Args:
        arguments: Checked arguments of the network.
        index: The level, from 0.
    """

    def __init__(self, arguments: dict[str, Any], index: int) -> None:
        super().__init__()
        width, depth = arguments["dim"] * 2**index, arguments["depths"][index]
        self.has_attention = index >= 2
        if self.has_attention:
            self.ratios = as_list(arguments["sr_ratio"][index])
            self.trained_window = trained_window(arguments, index)
            settings = (arguments["num_heads"][index], arguments["mlp_ratio"], arguments["cpb_mlp_hidden"])
            self.blocks = nn.ModuleList(
                EradioBlock(width, *settings, self.trained_window, self.ratios) for _ in range(depth)
            )
        else:
            self.blocks = EradioConvolutions(width, depth)
        if index < 3:
            self.downsample = EradioDownsampling(width)

    def forward(self, maps: Tensor, window: int | None) -> Tensor:
        """Return maps of the same shape; `window` is in tokens, `None` takes that of the training."""
        if not self.has_attention:
            return self.blocks(maps)  # pyrefly: ignore[not-callable]
        window = window or self.trained_window
        # Instead of padding, the map is resized to whole windows, and back after the last block.
        step, size = window * max(self.ratios), maps.shape[-2:]
        rows, cols = (-(-side // step) * step for side in size)
        stretched = F.interpolate(maps, (rows, cols), mode="nearest") if (rows, cols) != tuple(size) else maps
        for block in self.blocks:  # pyrefly: ignore[not-iterable]
            stretched = block(stretched, window)
        return F.interpolate(stretched, size, mode="nearest") if (rows, cols) != tuple(size) else stretched


class EradioNeck(nn.Module):
    """Joins the two levels with attention into features at the stride of the finer one."""

    def __init__(self, width: int, feature_width: int) -> None:
        super().__init__()
        self.neck_features_proj = nn.ModuleList(
            EradioNeckProjection(width * factor, feature_width, factor) for factor in (1, 2)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        fine, coarse = (project(maps) for project, maps in zip(self.neck_features_proj, levels, strict=True))
        return fine + coarse


class EradioTrunk(nn.Module):
    """From normalized pixels `(batch, 3, height, width)` to features `(batch, hidden, height / 16, width / 16)`."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self._config = config
        arguments: dict[str, Any] = config.eradio or {}
        self.patch_embed = EradioStem(config.num_channels, arguments["in_dim"], arguments["dim"])
        self.levels = nn.ModuleList(EradioLevel(arguments, index) for index in range(4))
        self.high_res_neck = EradioNeck(arguments["dim"] * 4, config.hidden_size)

    def forward(self, pixel_values: Tensor, window: int | None) -> Tensor:
        dtype = self.patch_embed.conv_down[0].conv.weight.dtype  # pyrefly: ignore[missing-attribute]
        maps, outputs = self.patch_embed(pixel_values.to(dtype)), []
        for index, level in enumerate(self.levels):
            maps = level(maps, window)
            if index >= 2:
                outputs.append(maps)
            if index < 3:
                maps = level.downsample(maps)  # pyrefly: ignore[not-callable]
        return self.high_res_neck(outputs)

    @property
    def blocks(self) -> nn.ModuleList:
        """The four levels."""
        return self.levels

    def change_window_size(self, window_size: int | None) -> None:
        """Set the default side of the windows in tokens; `None` takes that of the training.

        It is stored as `config.vitdet_window_size`, also in a saved folder.

        Raises:
            ValueError: If it is no positive integer.
        """
        if isinstance(window_size, Sequence) and len(set(window_size)) == 1:  # NVIDIA's method takes both
            window_size = window_size[0]
        optional(COUNT).check("window_size", window_size)
        self._config.vitdet_window_size = window_size

    def set_optimal_window_size(self, image_dim: Sequence[int] | int) -> int:
        """Set the windows that fit images of a height and width without resizing; see `optimal_window`.

        Returns:
            The side in tokens.
        """
        sides = [image_dim] * 2 if isinstance(image_dim, int) else list(image_dim)
        window = optimal_window(*sides)
        self.change_window_size(window)
        return window


class EradioNetwork(RadioNetwork):
    """The network of an E-RADIO, with the architecture in `config.eradio`.

    Its windows are not ViTDet's: they are part of the architecture, and all attention is within windows. A call or
    `change_window_size` sets their side at both levels; the default is that of the training.

    Raises:
        ValueError: If a field of the configuration contradicts `eradio`, or asks for temporal patches or normalizers of
            blocks, which E-RADIO does not have.
    """

    refused = {
        "image_grid_hw": "E-RADIO has no packed images, since its convolutions read whole ones",
        "draws": "E-RADIO has no randomness in training",
        "num_tokens": "E-RADIO has no global tokens",
        "decode": "E-RADIO has no decoder",
        "output_hidden_states": "E-RADIO has no tokens of one width between its levels",
        "output_attentions": "E-RADIO has no attention weights of the whole image",
    }

    def __init__(self, config: RadioConfig, use_adaptors: bool = True) -> None:
        fields = eradio_fields(config.eradio or {})
        wanted = {**fields, "video_temporal_patch_size": None, "num_intermediate_normalizers": 0}
        for name, value in wanted.items():
            if getattr(config, name) != value:
                raise ValueError(f"`{name}` must be {value!r} with this `eradio`, got {getattr(config, name)!r}.")
        super().__init__(config, use_adaptors)

    @property
    def input_embeddings(self) -> nn.Module:
        """The stem."""
        return self.model.patch_embed  # pyrefly: ignore[bad-return]

    def replace_input_embeddings(self, value: nn.Module) -> None:
        """Replace the stem by a module that maps normalized pixels to maps of a quarter of their sides."""
        self.model.patch_embed = value

    def build_trunk(self, config: RadioConfig) -> nn.Module:
        return EradioTrunk(config)

    def encode(self, call: Call) -> NetworkOutput:
        """Run the network; the mean of the features precedes them, as the class token does in other networks.

        Raises:
            ValueError: If blocks are wanted, since the levels have different widths, or E-RADIO has no such window.
        """
        if call.keep:
            raise ValueError(
                f"Blocks {sorted(call.keep)} cannot be read: E-RADIO has no blocks of one width, only its final "
                "features. Take a head that reads these, or a RADIO that is a plain ViT."
            )
        batch = call.batch
        window = self._window(call.window_size, batch.grid)
        features = self.model(self.input_conditioner(batch.pixels), window).flatten(2).transpose(1, 2)
        tokens = torch.cat([features.mean(dim=1, keepdim=True), features], dim=1)
        return NetworkOutput(tokens, tokens, {}, None, None, batch.grid, num_clips=batch.num_clips)

    def _window(self, window_size: int | str | None, grid: Resolution) -> int | None:
        """Return the side of a call's windows; `None` means that of the training."""
        if window_size is None:
            return self.config.vitdet_window_size
        if window_size == "auto":
            return optimal_window(*(side * self.config.patch_size for side in grid))
        if not COUNT.holds(window_size):
            raise ValueError(
                f"`window_size` must be a positive integer, 'auto' or None, got {window_size!r}: E-RADIO attends in "
                "windows only."
            )
        return window_size  # pyrefly: ignore[bad-return]


def optimal_window(height: int, width: int) -> int:
    """Return NVIDIA's choice of a window: the largest divisor, at most 16, of the shorter side in units of 32 pixels.

    Args:
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Raises:
        ValueError: If a side is shorter than 32 pixels.
    """
    tokens = min(height, width) // 32
    if tokens < 1:
        raise ValueError(f"Sides must be at least 32 pixels to choose a window, got {height} x {width}.")
    return max(window for window in range(1, LARGEST_WINDOW + 1) if tokens % window == 0)
