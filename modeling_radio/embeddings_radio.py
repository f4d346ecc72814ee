"""From pixels to tokens: input normalization, patch projection, cropped position embeddings, prefix tokens."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.import_utils import is_torch_greater_or_equal

from .configuration_radio import RadioConfig
from .packs_radio import ImagePack
from .position_cache_radio import PositionCache
from .position_crops_radio import POSITION_DRAWS, sample_crops


RESIZED_CHANNELS = 64  # our choice: 4 MB of a table of 128 x 128
COMPILES_SYM_MAX = is_torch_greater_or_equal("2.11")  # where it was tried, on GPUs too


def is_recorded() -> bool:
    """Return whether the pass is compiled, exported or traced, so that its sizes and tensors may stand for others."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _longer(rows: int, cols: int) -> int:
    """Return the longer side; `max` would fix under export which it is, and torch 2.6 cannot compile `sym_max`."""
    if COMPILES_SYM_MAX:
        return cast(int, torch.sym_max(rows, cols))
    return (rows + cols + abs(rows - cols)) // 2


def resize_position_table(table: Tensor, rows: int, cols: int, align_corners: bool) -> Tensor:
    """Resize a table of positions `(1, old_rows, old_cols, hidden)` bilinearly, to `(1, rows * cols, hidden)`.

    In float32 and in one piece of memory as NVIDIA's, since torch sums strided maps up in another order. On a CPU some
    channels at a time: the whole table, copied, may be larger than all that an image takes.
    """
    maps = table.permute(0, 3, 1, 2)
    parts = [maps] if is_recorded() or table.device.type != "cpu" else maps.split(RESIZED_CHANNELS, dim=1)
    resized = [
        F.interpolate(part.contiguous().float(), (rows, cols), mode="bilinear", align_corners=align_corners)
        for part in parts
    ]
    image = torch.cat(resized, dim=1) if len(resized) > 1 else resized[0]
    return image.flatten(2).transpose(1, 2)


class RadioInputConditioner(nn.Module):
    """Normalizes RGB pixels in [0, 1] with the training mean and standard deviation, in float32."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.register_buffer("norm_mean", torch.tensor(config.norm_mean).view(-1, 1, 1))
        self.register_buffer("norm_std", torch.tensor(config.norm_std).view(-1, 1, 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        normalized = (pixel_values.float() - self.norm_mean.float()) / self.norm_std.float()
        return normalized.to(pixel_values.dtype)


class RadioLearnedTokens(nn.Module):
    """Has tokens as parameters of its own, `(..., tokens, hidden)`; new ones are normal with deviation hidden^-0.5."""


class RadioPrefixTokens(RadioLearnedTokens):
    """Puts learned tokens, class tokens first, before others: `(batch, length, hidden)` to `prefix + length`."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(config.num_prefix_tokens, config.hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)


class RadioPatchGenerator(RadioLearnedTokens):
    """Turns patches into tokens: linear projection, position embedding, prefix tokens.

    The position table covers `max_img_size`. In training each image sees a random crop of it, stretched over its own
    grid, so that the network meets every scale; in evaluation the table is resized to the longer side of the grid and
    cropped top-left.

    Shapes of `forward`: patches `(batch, rows * cols, channels * patch * patch)` as of `split_patches`, their rows and
    columns, and in training the numbers of `sample_positions` (`None` takes them from torch's global generator), to
    tokens `(batch, prefix + rows * cols, hidden)`; or all patches of a pack, `(total_patches, ...)`, to its sequence.
    With `temporal` the patches are of several frames each, their channels one frame after the other.

    References:
        Cropped position embeddings: AM-RADIO, appendix C. https://arxiv.org/abs/2312.06709
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.config = config
        self.embedder = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size, config.use_patch_bias)
        if config.video_temporal_patch_size is not None:
            width = config.video_temporal_patch_size * config.num_channels * config.patch_size**2
            self.video_embedder = nn.Linear(width, config.hidden_size, bias=False)
        self.pos_embed = nn.Parameter(torch.empty(1, config.position_grid_size**2, config.hidden_size))
        self.cls_token = RadioPrefixTokens(config)
        self.resized = PositionCache()

    def forward(
        self,
        patches: Tensor,
        rows: int,
        cols: int,
        draws: Tensor | None = None,
        pack: ImagePack | None = None,
        temporal: bool = False,
    ) -> Tensor:
        embedder = self.video_embedder if temporal else self.embedder
        tokens = embedder(patches.to(self.pos_embed.dtype))  # the weight itself may be quantized
        if pack is None:
            return self._add_positions(tokens, rows, cols, draws)
        groups = [
            self._add_positions(group, *grid, None if draws is None else draws[images]).flatten(0, 1)
            for (grid, images), group in zip(pack.groups.items(), pack.group_patches(tokens), strict=True)
        ]
        return torch.cat(groups).unsqueeze(0)

    def _add_positions(self, tokens: Tensor, rows: int, cols: int, draws: Tensor | None) -> Tensor:
        if self.training and self.config.use_cropped_positions:
            if draws is None:
                draws = torch.rand(tokens.shape[0], POSITION_DRAWS, device=self.pos_embed.device)
            positions = self.sample_positions(rows, cols, draws)
        else:
            positions = self.resized_positions(rows, cols, self.pos_embed.dtype)
        # In the table's precision: under autocast tokens stay float32 through all blocks, whose branches are lower.
        return self.cls_token(tokens + positions.to(self.pos_embed.dtype))

    def split_patches(self, pixel_values: Tensor) -> Tensor:
        """Cut images into flattened patches `(batch, rows * cols, channels * patch * patch)`, channel-major."""
        batch_size, channels, height, width = pixel_values.shape
        size = self.config.patch_size
        patches = pixel_values.reshape(batch_size, channels, height // size, size, width // size, size)
        # (batch, channels, rows, size, cols, size) -> (batch, rows, cols, channels, size, size)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch_size, -1, channels * size * size)

    def sample_positions(self, rows: int, cols: int, uniform: Tensor) -> Tensor:
        """Return position embeddings `(batch, rows * cols, hidden)` from one random crop of the table per image.

        Args:
            rows: Rows of patches of each image.
            cols: Columns of patches.
            uniform: Numbers in [0, 1) that decide the crops, `(batch, POSITION_DRAWS)`.
        """
        return sample_crops(self.pos_embed[0], self.config.position_grid_size, (rows, cols), uniform)

    def resized_positions(self, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
        """Return the evaluation position embeddings `(1, rows * cols, hidden)` of a grid.

        On the CPU and without gradients what was resized is kept until the table changes. Elsewhere resizing costs less
        than finding out whether it did, for which the host would wait for the device.
        """
        table = self.pos_embed
        if is_recorded() or table.device.type != "cpu" or (torch.is_grad_enabled() and table.requires_grad):
            return self._resize_positions(rows, cols).to(dtype)
        return self.resized.get(table, (rows, cols, dtype), lambda: self._resize_positions(rows, cols).to(dtype))

    def _resize_positions(self, rows: int, cols: int) -> Tensor:
        table = self.pos_embed.unflatten(1, 2 * (self.config.position_grid_size,))
        align_corners = self.config.pos_embed_align_corners
        if not self.config.use_cropped_positions:
            return resize_position_table(table[:, :rows, :cols], rows, cols, align_corners)
        side = _longer(rows, cols)
        tokens = resize_position_table(table, side, side, align_corners)
        # Cropped by index, not by slice: under export a slice would tie the strides to the grid's shape.
        row, col = (torch.arange(size, device=tokens.device) for size in (rows, cols))
        return tokens[:, (row[:, None] * side + col).flatten()]
