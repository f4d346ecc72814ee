"""At one size."""

from __future__ import annotations

from typing import ClassVar

from training.teachers.run_modes.base import OneSizeMode, Size


class FixedMode(OneSizeMode):
    """It sees every image at one square size, and so answers on one grid, of whatever is asked for."""

    has_own_size: ClassVar[bool] = True

    def input_sizes(self, rows: int, cols: int) -> tuple[Size, ...]:
        """Return the one size."""
        return ((self.side_px, self.side_px),)
