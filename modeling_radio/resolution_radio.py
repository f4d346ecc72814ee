"""Image sizes: which are valid, the valid one nearest to any other, and what an image is resized to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers.image_utils import SizeDict

from .messages_radio import did_you_mean


if TYPE_CHECKING:
    from .configuration_radio import RadioConfig

SIZE_KEYS = (
    "height",
    "width",
    "shortest_edge",
    "longest_edge",
    "max_height",
    "max_width",
    "min_pixels",
    "max_pixels",
)
_PAIRS = ({"height", "width"}, {"max_height", "max_width"})

MAX_PIXELS = 2**31  # our choice: no side or area of an image is as large, and all computation stays exact in floats


class Resolution(NamedTuple):
    """A height and a width, in pixels or in patches."""

    height: int
    width: int


def round_to_step(size: float, step: int) -> int:
    """Return the multiple of `step` nearest to `size`, at least one; of two as near the even one, as NVIDIA's code."""
    return max(round(size / step), 1) * step


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
    return nearest_multiple(height, width, config.resolution_step, largest_side(config))


def check_resolution(config: "RadioConfig", height: int, width: int, argument: str = "pixel_values") -> None:
    """Refuse a size that the network cannot take; `argument` has it.

    Raises:
        ValueError: If a side is no positive multiple of the patch size or too large. The message names the nearest.
    """
    check_multiple(f"`{argument}`", height, width, config.resolution_step, largest_side(config))


def read_size(size: Any, name: str = "size") -> SizeDict:
    """Return the option `size` of an image processor as transformers' `SizeDict`.

    Args:
        size: An integer for the shorter side, `(height, width)`, or a dictionary with some of `SIZE_KEYS`.
        name: What the option is called.

    Raises:
        ValueError: If it is something else, or a combination that means nothing here.
    """
    given = size
    if isinstance(size, SizeDict):
        size = dict(size)  # pyrefly: ignore[no-matching-overload]
    elif isinstance(size, int):
        size = {"shortest_edge": size}
    elif isinstance(size, Sequence) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, dict) or not size or not set(size) <= set(SIZE_KEYS):
        unknown = [key for key in size if key not in SIZE_KEYS] if isinstance(size, dict) else []
        raise ValueError(
            f"`{name}` must be an integer, (height, width) or a dictionary with some of {list(SIZE_KEYS)}, got "
            f"{given!r}." + (did_you_mean(unknown[0], SIZE_KEYS) if unknown else "")
        )
    if not all(is_pixels(value) for value in size.values()):
        raise ValueError(f"`{name}` must hold positive integers below {MAX_PIXELS}, got {given!r}.")
    for pair in _PAIRS:
        if pair & set(size) and set(size) != pair:
            first, second = sorted(pair)
            raise ValueError(f"`{name}` with {first!r} or {second!r} must hold both and nothing else, got {given!r}.")
    return SizeDict(**size)


def read_exact_size(size: Any, name: str) -> SizeDict:
    """Return an option that is a height and a width, `read_size`'s or one integer for both.

    Raises:
        ValueError: If it is something else.
    """
    is_side = isinstance(size, int) and not isinstance(size, bool)
    exact = read_size((size, size) if is_side else size, name)
    if not exact.height:
        raise ValueError(f"`{name}` must have a 'height' and a 'width', got {size!r}.")
    return exact


def is_pixels(value: Any) -> bool:
    """Return whether a value can be a number of pixels, or of anything that images are made of."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < MAX_PIXELS


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
    tallest, widest = min(size.max_height or longest, longest), min(size.max_width or longest, longest)
    if min(tallest, widest) < step or (size.max_pixels or step**2) < step**2:
        raise ValueError(f"`size` must have room for one patch of {step} x {step} pixels, got {dict(size)}.")
    scale = _choose_scale(height, width, size, longest)
    rows = nearest_multiple(height * scale, step, step, tallest).height
    cols = nearest_multiple(width * scale, step, step, widest).height
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
    elif size.max_height and size.max_width:
        scale = min(size.max_height / height, size.max_width / width)
    if size.min_pixels:
        scale = max(scale, (size.min_pixels / (height * width)) ** 0.5)
    if size.max_pixels:
        scale = min(scale, (size.max_pixels / (height * width)) ** 0.5)
    return min(scale, longest / max(height, width))
