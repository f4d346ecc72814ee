"""At the student's size."""

from __future__ import annotations

import math

from training.recipe_sections.networks import RunOptions
from training.teachers.run_modes.base import RunMode, Size


class NativeMode(RunMode):
    """It sees the image at one patch for each cell, its sides rounded up to what the network takes."""

    def choose_size(self, options: RunOptions) -> None:
        """Refuse a size, and a network that has one only."""
        if not self.traits.runs_at_any_size:
            native = self.traits.native_size_px
            raise self.traits.error(
                f"`run_mode` must be 'fixed' or 'mosaic', got 'native': it runs at {native} px only."
            )
        if options.input_size_px is not None:
            size = options.input_size_px
            raise self.traits.error(f"`run_mode` must be 'fixed' with an `input_size_px` ({size}), got 'native'.")

    def input_sizes(self, rows: int, cols: int) -> tuple[Size, ...]:
        """Return one size, near to that of the image in patches."""
        patch, multiple = self.traits.patch_size, self.traits.size_multiple
        height, width = (math.ceil(cells * patch / multiple) * multiple for cells in (rows, cols))
        return ((height, width),)
