"""Layers of E-RADIO: convolutions with batch norm, their stages, and attention in windows at two scales."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


POSITION_RANGE = 8
"""Scale of the coordinates that the position MLP reads (Swin v2, equation 4, and its code)."""
POSITION_BIAS = 16
"""Largest bias that a relative position gives (Swin v2's code)."""


class ConvNorm(nn.Sequential):
    """Convolution without bias and batch norm, `(batch, in, rows, cols)` to `(batch, out, rows / stride, ...)`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)


class EradioStem(nn.Module):
    """Two convolutions that each halve the grid, to a quarter of the image's sides."""

    def __init__(self, num_channels: int, stem_width: int, width: int) -> None:
        super().__init__()
        self.conv_down = nn.Sequential(
            ConvNorm(num_channels, stem_width, stride=2), nn.ReLU(), ConvNorm(stem_width, width, stride=2), nn.ReLU()
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.conv_down(pixel_values)


class EradioDownsampling(nn.Module):
    """A convolution that halves the grid and doubles the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = ConvNorm(width, 2 * width, stride=2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.reduction(maps)


class _Bottleneck(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvNorm(width, width), ConvNorm(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + F.silu(self.cv2(F.silu(self.cv1(maps))))


class EradioConvolutions(nn.Module):
    """YOLOv8's C2f: half of the channels go through `depth` bottlenecks, and all that they give is joined.

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
    """Bias of each pair of tokens in a window by their relative position, from a small MLP.

    The MLP reads offsets on a logarithmic scale, in units of the window that it was trained with, so that it answers
    for windows of any size.

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
        """Return what the MLP reads, `(2 * window - 1, 2 * window - 1, 2)`, rows before columns."""
        offsets = torch.arange(1 - window, window, dtype=torch.float32) / max(self.trained_window - 1, 1)
        offsets = offsets * POSITION_RANGE
        scaled = offsets.sign() * (offsets.abs() + 1).log2() / math.log2(POSITION_RANGE)
        return torch.stack(torch.meshgrid(scaled, scaled, indexing="ij"), dim=-1)

    @staticmethod
    def index(window: int) -> Tensor:
        """Return where each pair of tokens stands among the offsets, `(window**2, window**2)`."""
        places = torch.arange(window)
        row, col = (axis.flatten() for axis in torch.meshgrid(places, places, indexing="ij"))
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
    """Self-attention of the tokens of each window, `(windows, window**2, width)` to the same."""

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


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_size, bias=False)
        self.fc2 = nn.Linear(hidden_size, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class EradioAttentionBlock(nn.Module):
    """Attention in windows and an MLP, on the map itself or on one of half its sides; half of the input is kept.

    Args:
        width: Channels.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP divided by `width`.
        position_hidden: Hidden width of the position MLP.
        trained_window: Window in tokens that the position MLP was trained with.
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


class EradioNeckProjection(nn.Module):
    """One level's part in the features: enlarged, a depthwise convolution, batch norm, and all channels mixed."""

    def __init__(self, width: int, feature_width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, feature_width, kernel_size=1)

    def forward(self, maps: Tensor) -> Tensor:
        enlarged = F.interpolate(maps, scale_factor=self.factor, mode="nearest") if self.factor > 1 else maps
        return self.conv2(self.norm(self.conv1(enlarged)))
