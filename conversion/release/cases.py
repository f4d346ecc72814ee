"""What both models are shown: images, sizes and windows."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import nearest_multiple
from modeling_radio.image_processing_radio import UNREADABLE, read_picture


PHOTOGRAPH = Path(__file__).parents[2] / "docs" / "photograph.jpg"
NOISE = "uniform noise"
_DEFAULT_SIZES = ((224, 224), (384, 640))
"""Besides the preferred one: our choice, a small square and an image that is not square."""
_DEFAULT_WINDOWS = (8,)
"""Our choice: of the sides that NVIDIA's report measures, the smallest, whose windows differ most from none."""
_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")
_SEED, _NOISE_SIZE = 0, (512, 512)

Cases = list[tuple[int | None, list[str]]]
"""Window, and the sizes "HEIGHTxWIDTH" that are run with it; None is global attention, of E-RADIO its own."""


def read_size(text: str) -> tuple[int, int]:
    """Return height and width of "512" or "384x640".

    Raises:
        ValueError: If it is neither.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not min(int(side) for side in match.groups(match[1])) > 0:
        raise ValueError(f"`sizes` must be like 512 or 384x640 (height x width, px), got {text!r}.")
    height, width = match.groups(match[1])
    return int(height), int(width)


def plan_cases(config: RadioConfig, sizes: Iterable[str], windows: Sequence[int] | None = None) -> Cases:
    """Return what to run: every size with global attention, and with each window.

    NVIDIA's windows must divide the grid of patches, so that sizes are rounded to what divides. E-RADIO and RADIO1D
    have no ViTDet windows, so that they run as they are alone.

    Args:
        config: Of the model.
        sizes: As `read_size` takes them; none for the preferred one and two more.
        windows: Sides of windows in tokens; `None` for 8 where the network has windows.

    Raises:
        ValueError: If the network has no windows, or one is larger than what it takes in.
    """
    wanted = [read_size(size) for size in sizes] or [tuple(config.preferred_resolution), *_DEFAULT_SIZES]
    cases: Cases = []
    is_plain = config.eradio is None and not config.num_mergings
    if windows and not is_plain:
        raise ValueError(f"`windows` must be none for E-RADIO and RADIO1D, which have no such windows, got {windows}.")
    if windows is None:
        windows = _DEFAULT_WINDOWS if is_plain else ()
    for window in (None, *dict.fromkeys(windows)):
        step, largest = config.resolution_step * (window or 1), config.largest_side
        if step > largest:
            raise ValueError(f"`windows` must be at most {largest // config.patch_size} for this model, got {window}.")
        rounded = [nearest_multiple(height, width, step, largest) for height, width in wanted]
        cases.append((window, list(dict.fromkeys(f"{height}x{width}" for height, width in rounded))))
    return cases


def open_images(paths: Sequence[Path]) -> dict[str, Image.Image]:
    """Return pictures by name; without paths a photograph and noise, which strains every channel.

    Raises:
        ValueError: If a file is no picture.
    """
    if paths:
        return {path.name: _open(path) for path in paths}
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randint(0, 256, (3, *_NOISE_SIZE), dtype=torch.uint8, generator=generator)
    return {PHOTOGRAPH.name: _open(PHOTOGRAPH), NOISE: to_pil_image(noise)}


def _open(path: Path) -> Image.Image:
    try:
        return read_picture(path)
    except UNREADABLE as error:
        raise ValueError(f"`images` must be pictures, got {str(path)!r}: {error}.") from error


def pixels_of(images: Iterable[Image.Image], cases: Cases) -> dict[str, Tensor]:
    """Return the pictures at each size, `(images, 3, height, width)` in 0 ... 255."""
    pictures = list(images)
    found: dict[str, Tensor] = {}
    for size in dict.fromkeys(size for _, sizes in cases for size in sizes):
        height, width = read_size(size)
        resized = [picture.resize((width, height), Image.Resampling.BICUBIC) for picture in pictures]
        found[size] = torch.stack([pil_to_tensor(picture) for picture in resized])
    return found
