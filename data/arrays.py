"""Images of any channels and depth: TIFF, GeoTIFF and `.npy` files, one by one or as a training set."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor

from modeling_radio.data.image_folder import files_fingerprint, is_hidden
from modeling_radio.data.image_table import Images
from modeling_radio.data.labeled.folders import ARRAY_SUFFIX


ARRAY_SUFFIXES = (".tif", ".tiff", ARRAY_SUFFIX)
WHITE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
"""Value that becomes 1."""
MEASURED_IMAGES = 500
"""Our choice: images of which mean and deviation of the channels are measured."""
LEAST_DEVIATION = 1e-4
"""Our choice: a channel with less is constant, and not stretched to noise; a step of 16 bits is a sixth of it."""
AS_ARRAYS = {"do_convert_rgb": False, "input_data_format": "channels_first"}
"""Options of the processor beside such a model: it takes arrays `(channels, height, width)`."""


def read_channels(path: str | Path, num_channels: int) -> Tensor:
    """Return an image file as float32 in [0, 1], `(num_channels, height, width)`.

    Args:
        path: A TIFF or GeoTIFF, whose places without data become 0, or a `.npy` array with the channels first or last;
            of integers of 8 or 16 bits, which are divided by 255 or 65535, or of floats in [0, 1].
        num_channels: Channels that it must have.

    Raises:
        ValueError: If it cannot be read, or has other channels or values.
    """
    try:
        values = _read_array(Path(path))
    except (OSError, ValueError, TokenError) as error:  # also rasterio's; the last is NumPy's of a broken header
        raise ValueError(f"{str(path)!r} is no TIFF and no .npy file that can be read: {error}") from error
    values = values[None] if values.ndim == 2 else values
    if values.ndim == 3 and len(values) != num_channels and values.shape[2] == num_channels:
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or len(values) != num_channels or not values.size:
        raise ValueError(f"`num_channels` is {num_channels}, but {str(path)!r} has the shape {values.shape}.")
    kind = values.dtype.newbyteorder("=")
    if kind not in WHITE and kind.kind != "f":
        raise ValueError(f"{str(path)!r} must have integers of 8 or 16 bits without a sign, or floats, got {kind}.")
    pixels = torch.from_numpy(np.ascontiguousarray(values, np.float32)) / WHITE.get(kind, 1)
    low, high = (float(bound) for bound in pixels.aminmax())
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise ValueError(f"{str(path)!r} must have floats in [0, 1], got [{low:g}, {high:g}]: divide by a white.")
    return pixels


def _read_array(path: Path) -> np.ndarray:
    if path.suffix.lower() == ARRAY_SUFFIX:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)  # np.load also tries other formats
    try:
        import rasterio
    except ImportError as error:
        raise ValueError("it needs the package rasterio: `pip install rasterio`.") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # a plain TIFF
        with rasterio.open(path) as source:
            return np.ma.filled(source.read(masked=True), 0)


def measure_channels(paths: Sequence[str | Path], num_channels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the channels over the pixels of images, evenly chosen from many."""
    count = min(len(paths), MEASURED_IMAGES)
    sums = torch.zeros(3, num_channels, dtype=torch.float64)
    for number in range(count):
        pixels = read_channels(paths[number * len(paths) // count], num_channels).double().flatten(1)
        sums += torch.stack([torch.full((num_channels,), pixels.shape[1]), pixels.sum(1), pixels.square().sum(1)])
    mean, square = sums[1] / sums[0], sums[2] / sums[0]
    deviation = (square - mean.square()).clamp(min=0).sqrt().clamp(min=LEAST_DEVIATION)
    return mean.tolist(), deviation.tolist()


class ArrayFolder(Images):
    """All TIFF and `.npy` files below a folder; none is held out. Items are float32 `(num_channels, height, width)`.

    Args:
        folder: The folder; its sub-folders count too.
        num_channels: Channels of each file.
        num_images: Length of the data set; None takes every file once.

    Raises:
        ValueError: If there are no such files.
    """

    def __init__(self, folder: Path, num_channels: int, num_images: int | None = None) -> None:
        self.folder, self.num_channels = folder, num_channels
        found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ARRAY_SUFFIXES]
        self.files = [path for path in found if not any(map(is_hidden, path.relative_to(folder).parts))]
        if not self.files:
            raise ValueError(
                f"`data.source` must be a folder with {', '.join(ARRAY_SUFFIXES)} files with `data.num_channels`, got "
                f"{str(folder)!r}."
            )
        self.paths = list(itertools.islice(itertools.cycle(self.files), num_images or len(self.files)))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_channels(self.paths[index], self.num_channels)

    def fingerprint(self) -> str:
        return files_fingerprint({str(path.relative_to(self.folder)): path for path in self.files})

    def source_of(self, index: int) -> str:
        return str(self.paths[index])
