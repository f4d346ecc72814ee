"""At one size, finer grids by a trained network."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from training.teachers.run_modes.tile_upsampling import TiledMode


class SharpenedMode(TiledMode):
    """Like "tiles", but a trained FeatSharp joins whole and tiles; it knows the last features only."""

    answers_for_blocks: ClassVar[bool] = False

    _upsampler: nn.Module | None = None

    def use_upsampler(self, upsampler: nn.Module) -> None:
        """Take the network; see `FeatSharp` for what it is called with."""
        self._upsampler = upsampler

    def join(self, whole: Tensor, tiles: Tensor, images: Tensor) -> Tensor:
        """Return what the network makes of both, where the image has edges."""
        if self._upsampler is None:
            raise self.traits.error("`upsample` 'featsharp' needs `use_upsampler` first.")
        return self._upsampler(whole, tiles, images)
