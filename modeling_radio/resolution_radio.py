"""Image sizes: which are valid, the valid one nearest to any other, and what an image is resized to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers.image_utils import SizeDict

from .messages_radio import did_you_mean


if TYPE_CHECKING:
    from .configuration_radio import RadioConfig

SIZE_KEYS = ("height", "width", "shortest_edge", "longest_edge", "min_pixels", "max_pixels")


class Resolution(NamedTuple):
    """A height and a width, in pixels or in patches."""

    height: int
    width: int


def round_to_step(size: float, step: int) -> int:
    """Return the multiple of `step` that is nearest to `size`, halves rounded up, and at least one step."""
    return max(int(size / step + 0.5), 1) * step


def nearest_multiple(height: float, width: float, step: int, largest: int) -> Resolution:
    """Return the size nearest to `height` x `width` pixels whose sides are multiples of `step`, at most `largest`."""
    limit = largest // step * step
    return Resolution(*(min(round_to_step(side, step), limit) for side in (height, width)))


def check_multiple(name: str, height: int, width: int, step: int, largest: int) -> None:
    """Refuse a size with a side that is no positive multiple of `step`, or longer than `largest` pixels.

    Args:
        name: What has the size, as the message begins, for example "`size`".
        height: Height in pixels.
        width: Width in pixels.
        step: What both must be multiples of.
        largest: Longest side.

    Raises:
        ValueError: It names the nearest valid size.
    """
    if height % step or width % step or not height or not width or max(height, width) > largest:
        nearest = nearest_multiple(height, width, step, largest)
        raise ValueError(
            f"{name} must have sides that are multiples of {step} and at most {largest} pixels, got "
            f"{height} x {width}. The nearest valid size is {nearest.height} x {nearest.width}."
        )


def largest_side(config: "RadioConfig") -> int:
    """Return the largest accepted height or width in pixels."""
    return config.max_resolution or config.max_img_size


def nearest_resolution(config: "RadioConfig", height: int, width: int) -> Resolution:
    """Return the valid size nearest to `height` x `width` pixels."""
    return nearest_multiple(height, width, config.patch_size, largest_side(config))


def check_resolution(config: "RadioConfig", height: int, width: int) -> None:
    """Refuse a size that the network cannot take.

    Raises:
        ValueError: If a side is no positive multiple of the patch size or too large. The message names the nearest.
    """
    check_multiple("`pixel_values`", height, width, config.patch_size, largest_side(config))


def read_size(size: Any) -> SizeDict:
    """Return the option `size` of an image processor as transformers' `SizeDict`.

    Args:
        size: An integer for the shorter side, `(height, width)`, or a dictionary with some of `SIZE_KEYS`.

    Raises:
        ValueError: If it is something else, or a combination that means nothing here.
    """
    if isinstance(size, SizeDict):
        return size
    if isinstance(size, int):
        size = {"shortest_edge": size}
    elif isinstance(size, Sequence) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, dict) or not size or not set(size) <= set(SIZE_KEYS):
        unknown = [key for key in size if key not in SIZE_KEYS] if isinstance(size, dict) else []
        raise ValueError(
            f"`size` must be an integer, (height, width) or a dictionary with some of {list(SIZE_KEYS)}, got {size!r}."
            + (did_you_mean(unknown[0], SIZE_KEYS) if unknown else "")
        )
    if any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in size.values()):
        raise ValueError(f"`size` must hold positive integers, got {size!r}.")
    if ("height" in size or "width" in size) and set(size) != {"height", "width"}:
        raise ValueError(f"`size` with 'height' or 'width' must hold both and nothing else, got {size!r}.")
    return SizeDict(**size)


def resized_resolution(height: int, width: int, size: SizeDict, step: int, largest: int) -> Resolution:
    """Return what an image of `height` x `width` pixels is resized to, within the bounds of `size`.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        size: Which sides or areas are wanted; see `RadioImageProcessor`.
        step: Sides become multiples of this.
        largest: Longest side in pixels, whatever `size` says.

    Raises:
        ValueError: If no size is within the bounds.
    """
    if size.height and size.width:
        check_multiple("`size`", size.height, size.width, step, largest)
        return Resolution(size.height, size.width)
    longest = min(size.longest_edge or largest, largest)
    if longest < step or (size.max_pixels or step**2) < step**2:
        raise ValueError(f"`size` must have room for one patch of {step} x {step} pixels, got {dict(size)}.")
    scale = _choose_scale(height, width, size, longest)
    rows, cols = nearest_multiple(height * scale, width * scale, step, longest)
    if size.max_pixels and rows * cols > size.max_pixels:
        # Rounding down keeps the bound, but for a strip so thin that its short side was raised to one step.
        rows, cols = (max(int(side * scale / step), 1) * step for side in (height, width))
        longest_side = size.max_pixels // min(rows, cols) // step * step
        rows, cols = min(rows, longest_side), min(cols, longest_side)
    return Resolution(rows, cols)


def _choose_scale(height: int, width: int, size: SizeDict, longest: int) -> float:
    """Return the factor for both sides that `size` asks for; it brings no side beyond `longest`."""
    scale = 1.0
    if size.shortest_edge:
        scale = size.shortest_edge / min(height, width)
    elif size.longest_edge:
        scale = size.longest_edge / max(height, width)
    if size.min_pixels:
        scale = max(scale, (size.min_pixels / (height * width)) ** 0.5)
    if size.max_pixels:
        scale = min(scale, (size.max_pixels / (height * width)) ** 0.5)
    return min(scale, longest / max(height, width))
