"""Teacher features on grids finer than the teacher's own, from tiles of the image: without training, and FeatSharp."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio.core.files import write_folder, write_text
from modeling_radio.core.settings import Settings, SettingsError, require
from modeling_radio.data.decoding import ImageSize
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.training.teachers.run_modes import FixedMode, RunNetwork


GRID_TOLERANCE = 0.25
"""A wanted grid up to this share finer than the teacher's own is only resampled. Our choice: at 432 px, the finest of
its low sizes (27 patches, SigLIP2 has 24), C-RADIOv4 uses raw outputs; at 512 px (32 patches) and above, upsampled
ones."""


class TiledMode(FixedMode):
    """Like "fixed"; for a finer grid the features come on a multiple of the own grid, with the detail of tiles."""

    def input_sizes(self, rows: int, cols: int) -> tuple[ImageSize, ...]:
        """Return the size of the whole image and, for a finer grid, that of all tiles together."""
        num_tiles = tiles_per_side(math.sqrt(rows * cols), self.patches_per_side)  # as for a square of as many patches
        return tuple((self.side_px * count, self.side_px * count) for count in dict.fromkeys((1, num_tiles)))

    def forward_batch(self, images: Sequence[Tensor], run: RunNetwork) -> TeacherOutput:
        """Return the output for whole images, with features that each larger size makes finer."""
        whole, *larger = images
        summary, features = run(whole)
        for each in larger:
            num_tiles = each.shape[2] // self.side_px
            tiles = run(cut_tiles(each, num_tiles, num_tiles)).features
            features = self.join(features, stitch_tiles(tiles, num_tiles, num_tiles), each)
        return TeacherOutput(summary, features)

    def join(self, whole: Tensor, tiles: Tensor, images: Tensor) -> Tensor:
        """Return finer features.

        Args:
            whole: Features of whole images, `(batch, channels, rows, cols)`.
            tiles: Stitched features of their tiles, `(batch, channels, factor * rows, factor * cols)`.
            images: The normalized images that were cut into tiles.

        Returns:
            The shape of `tiles`.
        """
        return add_detail(whole, tiles)


def tiles_per_side(wanted_patches: float, own_patches: int) -> int:
    """Return the number of tiles along a side of the image for (nearly) `wanted_patches` patches, at least 1."""
    return max(1, math.ceil(wanted_patches / own_patches - GRID_TOLERANCE))


def cut_tiles(maps: Tensor, per_column: int, per_row: int) -> Tensor:
    """Cut each map into equal tiles.

    Args:
        maps: `(batch, channels, per_column * height, per_row * width)`: pixels or features.
        per_column: Tiles below each other.
        per_row: Tiles beside each other.

    Returns:
        `(batch * per_column * per_row, channels, height, width)`: a map's tiles one after the other, row by row.
    """
    tiles = maps.unflatten(3, (per_row, -1)).unflatten(2, (per_column, -1))
    # (batch, channels, per_column, height, per_row, width) -> tiles first
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def stitch_tiles(tiles: Tensor, per_column: int, per_row: int) -> Tensor:
    """Put tiles together again: the inverse of `cut_tiles`.

    Args:
        tiles: `(batch * per_column * per_row, channels, height, width)`.
        per_column: Tiles below each other.
        per_row: Tiles beside each other.

    Returns:
        `(batch, channels, per_column * height, per_row * width)`.
    """
    rows = tiles.unflatten(0, (-1, per_column, per_row))
    # (batch, per_column, per_row, channels, height, width) -> each axis of tiles before its axis of pixels
    return rows.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def add_detail(whole: Tensor, stitched: Tensor) -> Tensor:
    """Return the upsampled features of the whole image plus the detail that only its tiles show.

    Detail is the part of the stitched map that averaging to the grid of `whole` and upsampling loses. So the coarse
    part of the output, with the context of the whole image, stays, and tiles without more detail change nothing.

    Args:
        whole: `(batch, channels, rows, cols)`.
        stitched: `(batch, channels, factor * rows, factor * cols)`.

    Returns:
        The shape of `stitched`.
    """
    grid = whole.shape[2:]
    coarse_difference = whole - F.interpolate(stitched, grid, mode="area")
    return stitched + F.interpolate(coarse_difference, stitched.shape[2:], mode="bilinear")


CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
GUIDE_KEYS = 16  # channels in which pixels are compared; our choice
TENT_FLOOR = 1e-3
"""Share of a patch beyond the reach of bilinear interpolation, which edges can raise. Our choice."""
MIN_SCALE = 1e-6


class UpsampledTeacher(NamedTuple):
    """The teacher that an upsampler is trained for.

    Attributes:
        kind: Its kind in the recipe.
        source: Its source in the recipe.
        options: Its options in the recipe.
        feature_dim: Width of the features.
        input_size_px: Side of the square input.
        grid: Patches along a side of its map.
    """

    kind: str
    source: str | None
    options: Mapping[str, Any]
    feature_dim: int
    input_size_px: int
    grid: int


class UpsamplerConfig(Settings):
    """Sizes of an upsampler, and the teacher that it belongs to.

    Attributes:
        kind: The teacher's kind.
        source: The teacher's source.
        options: The teacher's options.
        feature_dim: Width of the teacher's features.
        input_size_px: Side of the teacher's square input.
        grid: Patches along a side of the teacher's own map.
        width: Width of the block.
        num_heads: Heads of its attention.
        window: Patches along a side of the neighborhood to which a patch attends.
        mlp_ratio: Width of the block's MLP over `width`.
        factor: Multiple of the grid that it was trained at; others work too.
        num_steps: Steps that it was trained for.
    """

    kind: str
    source: str | None = None
    options: dict[str, Any] = {}
    feature_dim: int = Field(gt=0)
    input_size_px: int = Field(gt=0)
    grid: int = Field(gt=0)
    width: int = Field(256, gt=0)
    num_heads: int = Field(8, gt=0)
    window: int = Field(7, gt=0)
    mlp_ratio: int = Field(4, gt=0)
    factor: int = Field(2, gt=1)
    num_steps: int = Field(0, ge=0)

    def model_post_init(self, context: Any) -> None:
        """Check that heads divide the width, and that a window has a center."""
        require(self.width % self.num_heads == 0, "width", self.width, f"a multiple of `num_heads`, {self.num_heads}")
        require(self.window % 2 == 1, "window", self.window, "odd")


class FeatSharp(nn.Module):
    """Upsampler of a teacher's map, from tiles of the image and its pixels.

    Args:
        config: Its sizes.

    Attributes:
        mean: Mean of each channel of the teacher's features, `(feature_dim,)`.
        scale: Root of the mean variance of its channels, `()`.
        pattern: Part of the teacher's standardized features that depends on the position alone,
            `(feature_dim, grid, grid)`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.feature_dim))
        self.register_buffer("scale", torch.ones(()))
        self.pattern = nn.Parameter(torch.zeros(config.feature_dim, config.grid, config.grid))
        self.guide = BilateralGuide()
        self.enter = nn.Linear(2 * config.feature_dim, config.width)
        self.attention = LocalAttention(config.width, config.num_heads, config.window)
        self.mlp = SwiGlu(config.width, config.mlp_ratio * config.width)
        self.leave = nn.Linear(config.width, config.feature_dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def standardize(self, features: Tensor) -> Tensor:
        """Return features `(batch, feature_dim, rows, cols)` without their mean, at a mean variance of 1."""
        return (features - self.mean.view(-1, 1, 1)) / self.scale

    def centered_pattern(self) -> Tensor:
        """Return the pattern of positions without their mean, which is content."""
        return self.pattern - self.pattern.mean((1, 2), keepdim=True)

    def sharpen(self, whole: Tensor, tiles: Tensor, images: Tensor) -> Tensor:
        """Return the finer map of standardized features, see `forward`."""
        pattern, factor = self.centered_pattern(), tiles.shape[2] // whole.shape[2]
        guide = self.guide(whole - pattern, images, factor)
        detail = tiles - pattern.repeat(1, factor, factor)
        hidden = self.enter(torch.cat([guide, detail], 1).movedim(1, 3))
        hidden = hidden + self.attention(hidden)
        hidden = hidden + self.mlp(hidden)
        return guide + self.leave(hidden).movedim(3, 1)

    def forward(self, whole: Tensor, tiles: Tensor, images: Tensor) -> Tensor:
        """Return a teacher's features on the grid of its stitched tiles.

        Args:
            whole: Its features of whole images, `(batch, feature_dim, grid, grid)`.
            tiles: Its stitched features of their tiles, `(batch, feature_dim, factor * grid, factor * grid)`.
            images: Their normalized pixels, `(batch, 3, height, width)`, at least as fine as `tiles`.

        Returns:
            The shape of `tiles`, float32.
        """
        result = self.sharpen(self.standardize(whole), self.standardize(tiles), images)
        return result * self.scale + self.mean.view(-1, 1, 1)


class BilateralGuide(nn.Module):
    """Enlarges a map to means of 3 x 3 coarse patches around each position, by distance and by likeness of pixels.

    A new one interpolates bilinearly, up to `TENT_FLOOR`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, GUIDE_KEYS)
        self.sharpness = nn.Parameter(torch.zeros(()))

    def forward(self, coarse: Tensor, images: Tensor, factor: int) -> Tensor:
        """Return `coarse`, `(batch, channels, rows, cols)`, on a grid `factor` times as fine; see `FeatSharp`."""
        rows, cols = coarse.shape[2:]
        keys = self.project(_pixel_moments(images, (factor * rows, factor * cols)).movedim(1, 3)).movedim(3, 1)
        coarse_keys = F.avg_pool2d(keys, factor)
        distances = torch.stack(
            [(keys - _repeat(near, factor)).square().sum(1) for near in _neighbors(coarse_keys, 3, "replicate")], 1
        )
        weights = (_tent_logits(rows, cols, factor).to(keys) - self.sharpness * distances).softmax(1)
        result = torch.zeros((), device=coarse.device)
        for number, near in enumerate(_neighbors(coarse, 3, "replicate")):
            result = result + weights[:, number, None] * _repeat(near, factor)
        return result


class LocalAttention(nn.Module):
    """Attention of each patch to those around it, on normalized `(batch, rows, cols, width)`."""

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.bias = nn.Parameter(torch.zeros(window * window, num_heads))
        self.leave = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the residual; shifted maps are compared one after the other, so no window is copied."""
        heads = self.query_key_value(self.norm(tokens)).unflatten(3, (3, self.num_heads, -1))
        query, key, value = heads.movedim(3, 0).flatten(4, 5).movedim(4, 2).unflatten(2, (self.num_heads, -1))
        query = query * query.shape[2] ** -0.5
        inside = torch.ones(1, 1, *tokens.shape[1:3], device=tokens.device)
        logits = torch.stack(
            [
                (query * near).sum(2).masked_fill(is_inside == 0, -torch.inf)
                for near, is_inside in zip(
                    _neighbors(key, self.window, "constant"), _neighbors(inside, self.window, "constant"), strict=True
                )
            ]
        )
        weights = (logits + self.bias[:, None, :, None, None]).softmax(0)
        result = torch.zeros((), device=tokens.device)
        for weight, near in zip(weights, _neighbors(value, self.window, "constant"), strict=True):
            result = result + weight[:, :, None] * near
        return self.leave(result.flatten(1, 2).movedim(1, 3))


class SwiGlu(nn.Module):
    """Gated MLP on normalized tokens."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, 2 * hidden)
        self.leave = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the residual."""
        gate, values = self.enter(self.norm(tokens)).chunk(2, -1)
        return self.leave(F.silu(gate) * values)


def _neighbors(maps: Tensor, window: int, padding: str) -> Iterator[Tensor]:
    """Yield the maps shifted to each position of a window, row by row, as views of one padded map."""
    rows, cols = maps.shape[-2:]
    reach = window // 2
    leading = maps.shape[:-2]
    padded = F.pad(maps.flatten(0, -3)[None], (reach,) * 4, mode=padding)[0].unflatten(0, leading)
    for row in range(window):
        for col in range(window):
            yield padded[..., row : row + rows, col : col + cols]


def _repeat(maps: Tensor, factor: int) -> Tensor:
    return maps.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _tent_logits(rows: int, cols: int, factor: int) -> Tensor:
    """Return the logarithms of bilinear weights over 3 x 3 coarse patches, `(9, factor * rows, factor * cols)`."""
    offsets = (
        torch.arange(factor) + 0.5
    ) / factor - 0.5  # of fine patches from the center of their coarse one, in coarse patches
    tent = (1 - (offsets - torch.tensor([[-1.0], [0.0], [1.0]])).abs()).clamp(min=0)
    pairs = (tent[:, None, :, None] * tent[None, :, None, :]).flatten(0, 1)
    return pairs.clamp(min=TENT_FLOOR).log().repeat(1, rows, cols)


def _pixel_moments(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return mean and deviation of the pixels of each patch, `(batch, 6, *size)`."""
    mean, square = (F.interpolate(values, size, mode="area") for values in (images, images.square()))
    return torch.cat([mean, (square - mean.square()).clamp(min=0).add(1e-6).sqrt()], 1)


def save_upsampler(upsampler: FeatSharp, folder: Path) -> None:
    """Write an upsampler as a folder, whole or not at all.

    Raises:
        WriteError: If writing fails.
    """

    def write(scratch: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in upsampler.state_dict().items()}
        save_file(tensors, scratch / WEIGHTS_FILE)
        write_text(scratch / CONFIG_FILE, json.dumps(upsampler.config.to_dict(), indent=2) + "\n")

    write_folder(folder, write)


def load_upsampler(folder: str | Path) -> FeatSharp:
    """Open a folder that `save_upsampler` wrote.

    Raises:
        ValueError: If it is no such folder; the message is one line.
    """
    path = Path(folder).expanduser()
    advice = "Train one with radio upsampler."
    try:
        config = UpsamplerConfig(**json.loads((path / CONFIG_FILE).read_text(encoding="utf-8")))
        upsampler = FeatSharp(config)
        upsampler.load_state_dict(load_file(path / WEIGHTS_FILE))
    except FileNotFoundError as error:
        missing = Path(error.filename or path / WEIGHTS_FILE).name
        raise ValueError(f"`upsampler` must be a folder with {missing}, got {str(folder)!r}. {advice}") from error
    except (OSError, SettingsError, SafetensorError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"`upsampler` {str(folder)!r} cannot be opened: {reason}. {advice}") from error
    return upsampler


def check_upsampler(config: UpsamplerConfig, teacher: UpsampledTeacher, folder: str | Path) -> None:
    """Raise a ValueError if an upsampler was trained for another teacher, or for another size of its input."""
    for name, wanted in teacher._asdict().items():
        trained = getattr(config, name)
        if trained != wanted:
            raise ValueError(
                f"`upsampler` must be of this teacher, with `{name}` {wanted!r}, got {str(folder)!r} with {trained!r}. "
                "Train one with radio upsampler."
            )


class SharpenedMode(TiledMode):
    """Like "tiles", but a trained FeatSharp joins whole and tiles."""

    _upsampler: nn.Module | None = None

    def use_upsampler(self, upsampler: nn.Module) -> None:
        """Take the network; see `FeatSharp.forward` for its arguments."""
        self._upsampler = upsampler

    def join(self, whole: Tensor, tiles: Tensor, images: Tensor) -> Tensor:
        """Return the network's finer features."""
        if self._upsampler is None:
            raise self.traits.error("`upsample` 'featsharp' needs `use_upsampler` first.")
        return self._upsampler(whole, tiles, images)
