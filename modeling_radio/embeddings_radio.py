"""From pixels to tokens: input normalisation, patch projection, cropped position embeddings, prefix tokens."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_radio import RadioConfig


# AM-RADIO's cropped position embeddings: a crop covers 10 % of the table's area or more, with an aspect ratio between
# 3:4 and 4:3 (https://arxiv.org/abs/2312.06709, appendix C).
MIN_CROP_AREA = 0.1
MAX_CROP_ASPECT = 4 / 3
POSITION_DRAWS = 4
"""Random numbers that decide one image's crop: scale, aspect ratio, column, row."""


class RadioInputConditioner(nn.Module):
    """Normalises RGB pixels in [0, 1] with the training mean and standard deviation, in float32."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("norm_mean", torch.empty(config.num_channels, 1, 1))
        self.register_buffer("norm_std", torch.empty(config.num_channels, 1, 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        normalized = (pixel_values.float() - self.norm_mean.float()) / self.norm_std.float()
        return normalized.to(pixel_values.dtype)


class RadioPrefixTokens(nn.Module):
    """Learned class and register tokens, `(num_prefix_tokens, hidden_size)`, class tokens first."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(config.num_prefix_tokens, config.hidden_size))


class RadioPatchGenerator(nn.Module):
    """Turns images into tokens: linear patch projection, position embedding, prefix tokens.

    The position table covers `max_img_size`. In training each image sees a random crop of it, stretched over its own
    grid, so that the network meets every scale; in evaluation the table is resized to the longer side of the grid and
    cropped top-left.

    Shapes of `forward`: pixels `(batch, channels, height, width)` to tokens `(batch, prefix + rows * cols, hidden)`.

    References:
        Cropped position embeddings: AM-RADIO, appendix C. https://arxiv.org/abs/2312.06709
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.grid_size = config.position_grid_size
        self.use_cropped_positions = config.use_cropped_positions
        self.align_corners = config.pos_embed_align_corners
        patch_dim = config.num_channels * config.patch_size**2
        self.embedder = nn.Linear(patch_dim, config.hidden_size, bias=config.use_patch_bias)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_size**2, config.hidden_size))
        self.cls_token = RadioPrefixTokens(config)
        self._resized: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._resized_from: tuple[int | float | torch.device, ...] = ()

    def forward(self, pixel_values: Tensor, draws: Tensor | None = None) -> Tensor:
        rows, cols = (size // self.patch_size for size in pixel_values.shape[-2:])
        return self.embed_patches(self.split_patches(pixel_values), rows, cols, draws)

    def embed_patches(self, patches: Tensor, rows: int, cols: int, draws: Tensor | None = None) -> Tensor:
        """Turn flattened patches `(batch, rows * cols, channels * patch * patch)` into tokens."""
        tokens = self.embedder(patches.to(self.pos_embed.dtype))  # the weight itself may be quantised
        if self.training and self.use_cropped_positions:
            positions = self.sample_positions(tokens.shape[0], rows, cols, draws)
        else:
            positions = self.resized_positions(rows, cols, tokens.dtype)
        prefix = self.cls_token.token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat([prefix, tokens + positions.to(tokens.dtype)], dim=1)

    def split_patches(self, pixel_values: Tensor) -> Tensor:
        """Cut images into flattened patches `(batch, rows * cols, channels * patch * patch)`, channel-major."""
        batch_size, channels, height, width = pixel_values.shape
        size = self.patch_size
        patches = pixel_values.reshape(batch_size, channels, height // size, size, width // size, size)
        # (batch, channels, rows, size, cols, size) -> (batch, rows, cols, channels, size, size)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch_size, -1, channels * size * size)

    def sample_positions(self, batch_size: int, rows: int, cols: int, draws: Tensor | None = None) -> Tensor:
        """Return position embeddings `(batch, rows * cols, hidden)` from one random crop of the table per image.

        Args:
            batch_size: Images.
            rows: Of each image's grid.
            cols: Likewise.
            draws: Uniform numbers in [0, 1) that decide the crops, `(batch, POSITION_DRAWS)`; `None` takes them from
                torch's global generator.
        """
        table = self._table_as_image()
        uniform = torch.rand(batch_size, POSITION_DRAWS, device=table.device) if draws is None else draws
        scale = math.sqrt(MIN_CROP_AREA) + uniform[:, 0] * (1 - math.sqrt(MIN_CROP_AREA))
        aspect = torch.exp((2 * uniform[:, 1] - 1) * math.log(MAX_CROP_ASPECT))
        extent = torch.stack([scale * aspect, scale / aspect], dim=1).clamp(max=1)  # (batch, xy), of the table
        offset = uniform[:, 2:] * (1 - extent)
        x = torch.linspace(0, 1, cols, device=table.device) * extent[:, :1] + offset[:, :1]
        y = torch.linspace(0, 1, rows, device=table.device) * extent[:, 1:] + offset[:, 1:]
        grid = torch.stack(
            [x[:, None, :].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, cols)], dim=-1
        )  # (batch, rows, cols, xy) in [0, 1]
        sampled = F.grid_sample(table.expand(batch_size, -1, -1, -1), grid * 2 - 1, mode="bilinear", align_corners=True)
        return sampled.flatten(2).transpose(1, 2)

    def resized_positions(self, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
        """Return the evaluation position embeddings `(1, rows * cols, hidden)` of a grid.

        Without gradients each grid is resized once and kept until the table changes.
        """
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self.pos_embed.requires_grad):
            return self._resize_positions(rows, cols).to(dtype)
        state = self._table_state()
        if state != self._resized_from:
            self._resized, self._resized_from = {}, state
        key = (rows, cols, dtype)
        if key not in self._resized:
            self._resized[key] = self._resize_positions(rows, cols).to(dtype)
        return self._resized[key]

    def _resize_positions(self, rows: int, cols: int) -> Tensor:
        table = self._table_as_image()
        if not self.use_cropped_positions:
            table = self._interpolate(table[:, :, :rows, :cols], rows, cols)
            return table.flatten(2).transpose(1, 2)
        side = cast(int, torch.sym_max(rows, cols))  # `max` would fix the longer side under export
        tokens = self._interpolate(table, side, side).flatten(2).transpose(1, 2)
        # Cropped by index, not by slice: under export a slice would tie the strides to the grid's shape.
        row, col = (torch.arange(size, device=tokens.device) for size in (rows, cols))
        return tokens[:, (row[:, None] * side + col).flatten()]

    def _interpolate(self, table: Tensor, rows: int, cols: int) -> Tensor:
        return F.interpolate(table, size=(rows, cols), mode="bilinear", align_corners=self.align_corners)

    def _table_as_image(self) -> Tensor:
        """The table as a float32 image `(1, hidden, grid, grid)`."""
        return self.pos_embed.float().unflatten(1, (self.grid_size, self.grid_size)).permute(0, 3, 1, 2)

    def _table_state(self) -> tuple[int | float | torch.device, ...]:
        """What changes when the table does.

        The version counter misses writes through `.data`, which many moving-average loops use: a sum of a thousandth
        of the table catches those.
        """
        table = self.pos_embed
        probe = table.detach().flatten()[:: max(table.numel() // 1024, 1)].double().sum().item()
        return table.device, table.data_ptr(), table._version, probe
