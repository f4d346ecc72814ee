"""kNN accuracy on labeled images while a run trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.ranks import on_first_rank, rank_and_count, sum_over_ranks
from modeling_radio.data.decoding import (
    EncodedImage,
    SkippedImages,
    UnusableImageError,
    crop_to_shape,
    decode_rgb,
    to_tensor,
)
from modeling_radio.data.image_folder import image_files, is_hidden
from modeling_radio.metrics.knn import knn_accuracy
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.student.foreign import global_window
from modeling_radio.training.student.sharding import reshard


MAX_IMAGES = 1024
"""Our choice: the standard error of an accuracy is then about 1.6 % at most, at the price of some steps."""
T = TypeVar("T")

NEIGHBORS = 20
"""Images that vote, as in `radio evaluate`."""
MAX_TOKENS_PER_PASS = 8192
"""As for the other measurements (`held_out.py`)."""


class HeldOutNeighbors:
    """Measures how often the nearest other images of a labeled folder have an image's class.

    Ranks divide the images, and run equally many passes, as sharded networks need. Nothing draws random numbers, and no
    state changes.

    Args:
        files: All images.
        labels: Their classes, `(num_images,)`.
        size_px: Side of the squares that the network sees.
        patch_size: The network's patch in pixels.
        accelerator: Its main process gets the numbers.
    """

    def __init__(
        self, files: Sequence[Path], labels: Tensor, size_px: int, patch_size: int, accelerator: Accelerator
    ) -> None:
        self.labels, self.size_px, self.accelerator = labels, size_px, accelerator
        self.images_per_pass = max(1, MAX_TOKENS_PER_PASS // (size_px // patch_size) ** 2)
        rank, num_ranks = accelerator.process_index, accelerator.num_processes
        self.numbers = list(range(rank, len(files), num_ranks))
        padded = [*self.numbers, len(files) - 1][: -(-len(files) // num_ranks)]
        self.images = torch.stack([_read(files[number], size_px) for number in padded])

    @classmethod
    def of_run(cls, recipe: Recipe, config: RadioConfig, accelerator: Accelerator) -> HeldOutNeighbors | None:
        """Return the measurement of a recipe, None where it asks for none; all ranks must take part.

        Raises:
            RecipeError: If `logging.knn_data` has no images of two classes.
        """
        folder = recipe.logging.knn_data
        if folder is None:
            return None
        files, labels = on_first_rank(lambda: _labeled_files(folder.expanduser()))
        return cls(files, torch.tensor(labels), config.preferred_resolution[0], config.patch_size, accelerator)

    @torch.no_grad()
    def measure(self, networks: Mapping[str, RadioModel]) -> dict[str, float]:
        """Return `knn/SIZE` of each network; all ranks must take part, only the main process gets any.

        Args:
            networks: By what begins the names of their measurements. They are left as they were.
        """
        values: dict[str, float] = {}
        for prefix, network in networks.items():
            was_training = network.training
            network.eval()
            with self.accelerator.autocast():
                summaries = self._summaries(network)
            network.train(was_training)
            reshard(network)
            if self.accelerator.is_main_process:
                options = {"k": min(NEIGHBORS, len(self.labels) - 1), "leave_one_out": True}
                accuracy = knn_accuracy(summaries, self.labels, summaries, self.labels, **options)
                values[f"{prefix}knn/{self.size_px}px"] = accuracy
        return values

    def _summaries(self, network: RadioModel) -> Tensor:
        """Return the summaries of all images, `(num_images, dim)` on the CPU; the mean features of networks without."""
        device, window = self.accelerator.device, global_window(network.config)
        found = []
        for images in self.images.split(self.images_per_pass):
            pixels = images.to(device).float() / 255
            output = network(pixels, window_size=window, adaptor_names=[], return_dict=True)
            found.append((output.summary if output.summary.shape[1] else output.features.mean(1)).float())
        own = torch.cat(found)[: len(self.numbers)]
        summaries = own.new_zeros(len(self.labels), own.shape[1])
        summaries[self.numbers] = own
        return sum_over_ranks(summaries).cpu()


def _read(file: Path, size_px: int) -> Tensor:
    try:
        return to_tensor(crop_to_shape(decode_rgb(EncodedImage(str(file), file)), size_px, size_px))
    except UnusableImageError as error:  # the first rank has read it
        raise RecipeError(
            f"`logging.knn_data` must have the same images for all ranks, but rank {rank_and_count()[0]} cannot read "
            f"{str(file)!r}: {error}. Copy the same files to each machine."
        ) from error


def _labeled_files(folder: Path) -> tuple[list[Path], list[int]]:
    """Return images of a folder, spread evenly over it, and the numbers of their classes.

    Of many classes only some are taken, with more than `NEIGHBORS` images each where they have them: an image that is
    alone in its class has no neighbor that could vote for it.
    """
    skipped = SkippedImages()
    classes = sorted(path for path in folder.glob("*/") if path.is_dir() and not is_hidden(path.name))
    of_classes = [files for path in classes if (files := list(image_files(path)))]
    of_classes = [_spread(files, max(NEIGHBORS + 1, MAX_IMAGES // len(of_classes))) for files in of_classes]
    num_images = sum(map(len, of_classes))
    of_classes = _spread(of_classes, MAX_IMAGES * len(of_classes) // max(num_images, 1))
    chosen = _spread([(file, number) for number, files in enumerate(of_classes) for file in files], MAX_IMAGES)
    # Decoded as small as their format allows: a header does not tell whether all pixels are there.
    usable = [each for each in chosen if skipped.decode(EncodedImage(str(each[0]), each[0]), lambda _: 0.0) is not None]
    if len({label for _, label in usable}) < 2:
        raise RecipeError(
            f"`logging.knn_data` must be a folder with a sub-folder of images for each of several classes, got "
            f"{str(folder)!r} with {len(usable)} images of {len({label for _, label in usable})}."
        )
    return [file for file, _ in usable], [label for _, label in usable]


def _spread(items: list[T], most: int) -> list[T]:
    """Return some of the items at equal distances."""
    number = min(most, len(items))
    return [items[index * len(items) // number] for index in range(number)]
