"""What is seen of held-out images at one resolution: a corner of each, and the same a whole number of patches away."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from training.teachers.base import Teacher


SHIFT_DIVISOR = 4
"""Of the grid: the other view is displaced by a quarter of it, the same share of what is seen at every resolution. Our
choice."""
MARGIN = 1 + 1 / SHIFT_DIVISOR
"""Side of the whole image over that of the view."""


@dataclass(frozen=True)
class View:
    """A size at which images are seen.

    Attributes:
        size_px: Side of the student's images.
        shift: How far the second view is displaced, down and right, in patches.
        patch_size: The student's, in pixels.
    """

    size_px: int
    shift: int
    patch_size: int

    @classmethod
    def of_size(cls, size_px: int, patch_size: int) -> View:
        """Return the view of a size, displaced as far as `SHIFT_DIVISOR` says, at least a patch."""
        return cls(size_px, max(1, size_px // patch_size // SHIFT_DIVISOR), patch_size)

    @property
    def cells(self) -> int:
        """Side of the student's grid."""
        return self.size_px // self.patch_size

    @property
    def offset_px(self) -> int:
        """How far the second view is displaced, in pixels."""
        return self.shift * self.patch_size

    def of_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two views of `(batch, 3, side, side)` uint8 images, `(batch, 3, size_px, size_px)` in [0, 1].

        Both are cut of one resized image, so that the second is exactly the first one moved.
        """
        offset, size = self.offset_px, self.size_px
        resized = _resized(images, self.whole_px)
        return resized[..., :size, :size], resized[..., offset : offset + size, offset : offset + size]

    def of_teacher(self, images: Tensor, teacher: Teacher) -> Tensor:
        """Return what the first view shows at the student's size, or at the teacher's own where that is larger."""
        size = self._size_px_for(teacher)
        return _resized(images, self.whole_px_for(teacher))[..., :size, :size]

    @property
    def whole_px(self) -> int:
        """Side of the whole image, of which a view shows a corner, at the student's size."""
        return max(round(MARGIN * self.size_px), self.size_px + self.offset_px)

    def whole_px_for(self, teacher: Teacher) -> int:
        """Return the side of the whole image at the size at which a teacher sees the view."""
        return round(self.whole_px * self._size_px_for(teacher) / self.size_px)

    def _size_px_for(self, teacher: Teacher) -> int:
        own_size = teacher.run.input_size_px
        if not teacher.mode.has_own_size or own_size is None:
            return self.size_px
        rounded_up = -(-own_size // teacher.grid_stride) * teacher.grid_stride
        return max(self.size_px, rounded_up)


def _resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images.float() / 255, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
