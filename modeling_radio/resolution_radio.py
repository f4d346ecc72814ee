"""Image sizes: which are valid, and the valid one nearest to any other."""

from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from .configuration_radio import RadioConfig


class Resolution(NamedTuple):
    """A height and a width, in pixels or in patches."""

    height: int
    width: int


def round_to_step(size: float, step: int) -> int:
    """Return the multiple of `step` that is nearest to `size`, halves rounded up, and at least one step."""
    return max(int(size / step + 0.5), 1) * step


def largest_side(config: "RadioConfig") -> int:
    """Return the largest accepted height or width in pixels."""
    return config.max_resolution or config.max_img_size


def nearest_resolution(config: "RadioConfig", height: int, width: int) -> Resolution:
    """Return the valid size nearest to `height` x `width` pixels."""
    step = config.patch_size
    largest = largest_side(config) // step * step
    return Resolution(*(min(round_to_step(size, step), largest) for size in (height, width)))


def check_resolution(config: "RadioConfig", height: int, width: int) -> None:
    """Refuse a size that the network cannot take.

    Raises:
        ValueError: If a side is no positive multiple of the patch size or too large. The message names the nearest.
    """
    step, largest = config.patch_size, largest_side(config)
    if height % step or width % step or not height or not width or max(height, width) > largest:
        nearest = nearest_resolution(config, height, width)
        raise ValueError(
            f"Images of {height} x {width} pixels: height and width must be multiples of {step} up to {largest}; "
            f"the nearest valid size is {nearest.height} x {nearest.width}."
        )
