"""Images that are made by number instead of read from files: the interface of such sources, the demo's among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from modeling_radio.core.imports import find_object
from modeling_radio.data.image_table import Images, Split
from modeling_radio.data.settings import IMAGE_SOURCES
from modeling_radio.metrics.results import Source


class MadeImages(ABC):
    """A source of images that are made by number.

    `data.source` names an instance, by a name of `IMAGE_SOURCES` or by its import path. Such images have no files, so
    they are not streamed or weighted.

    Attributes:
        origin: Origin of the images in words, for cards.
    """

    origin: str

    @abstractmethod
    def images(self, *, size: int, num_images: int | None, seed: int, split: Split) -> Images:
        """Return square images; item `index` depends on these arguments and the index alone.

        Args:
            size: Side of the images, pixels.
            num_images: Number of images; None takes the source's own number.
            seed: Decides random images.
            split: "train" or "held_out"; nothing held out is ever seen in training.

        Raises:
            ValueError: If the source has no such images.
        """

    def detailed_images(self, *, size: int, num_images: int, split: Split) -> Images:
        """Return images with detail everywhere, from which an upsampler learns; by default `images`."""
        return self.images(size=size, num_images=num_images, seed=0, split=split)

    def sources(self, name: str, purpose: str) -> list[Source]:
        """Return the origins of the images, for cards.

        Args:
            name: Name of this source in the recipe.
            purpose: Use of the images, such as "training".
        """
        return [Source(name, f"{purpose}: images", "see its origin", self.origin)]

    def labeled_folders(self, folder: Path) -> Sequence[Path]:
        """Return folders with a sub-folder for each class, on which studies measure kNN; by default none.

        Args:
            folder: Cache that they may be written to.
        """
        return ()


def open_made_images(source: str) -> MadeImages:
    """Return a source of images that are made by number.

    Args:
        source: A name of `IMAGE_SOURCES`, or an import path.

    Raises:
        ValueError: If it cannot be imported, or is no `MadeImages`.
    """
    found = find_object(source, IMAGE_SOURCES, "data.source")
    if not isinstance(found, MadeImages):
        raise ValueError(
            f"`data.source` {source!r} must be an instance of modeling_radio.data.made_images.MadeImages, "
            f"got a {type(found).__name__}."
        )
    return found
