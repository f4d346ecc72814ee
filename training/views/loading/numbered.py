"""Views of images by number, decoded and cropped by data workers, or only read by them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from foundation.interruption import ignore_stop_signals
from training.data.decoding import SkippedImages, UnusableImageError
from training.data.image_table import Images
from training.recipe import Recipe
from training.views.batches import Batch
from training.views.loading.base import Plan, Sights, scale_for
from training.views.on_device.looking import UnseenImage, read_jpeg, see_on_device
from training.views.regions import Seen, SeenBatch, Sight, look


class NumberedViewLoader:
    """Views of images with random access: which ones is a pure function of the step, so there is nothing to save.

    Args:
        images: uint8 `(3, height, width)`, RGB, any size.
        recipe: The recipe.
        pin_memory: Put the views in page-locked memory, for a GPU.
        device: Where JPEGs are decoded and cut; None for the data workers, which then only read them.
    """

    def __init__(
        self, images: Images, recipe: Recipe, *, pin_memory: bool = False, device: torch.device | None = None
    ) -> None:
        self.images, self.recipe, self.pin_memory, self.device = images, recipe, pin_memory, device
        self.skipped = SkippedImages()

    def views(self, plan: Plan, sights: Sights) -> Iterator[tuple[Batch, list[Seen]]]:
        are_read = self.device is not None
        loader = DataLoader(
            _NumberedFiles(self.images) if are_read else _NumberedViews(self.images, self.recipe),
            batch_sampler=_NumberedRequests(plan, sights),
            collate_fn=list if are_read else SeenBatch.of,
            num_workers=self.recipe.data.num_workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=self.pin_memory and not are_read,
        )
        for batch, seen in zip(plan(), loader, strict=True):
            if self.device is not None:
                seen = see_on_device(seen, self.recipe.views, self.device, self.skipped)
            yield batch, seen.split()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        return


class _NumberedRequest(NamedTuple):
    index: int
    sight: Sight


class _NumberedRequests:
    """Batch sampler that asks the data workers for one image per row of each planned batch."""

    def __init__(self, plan: Plan, sights: Sights) -> None:
        self.plan, self.sights = plan, sights

    def __iter__(self) -> Iterator[list[_NumberedRequest]]:
        for batch in self.plan():
            rows = zip(batch.indices, self.sights(batch), strict=True)
            yield [_NumberedRequest(index, sight) for index, sight in rows]


class _NumberedViews(Dataset[Seen]):
    def __init__(self, images: Images, recipe: Recipe) -> None:
        self.images, self.recipe = images, recipe

    def __getitem__(self, index: _NumberedRequest) -> Seen:
        scale = scale_for(index.sight, self.recipe)
        image = self.images[index.index] if scale is None else self.images.draft(index.index, scale)
        return look(image, index.sight, self.recipe.views)


class _NumberedFiles(Dataset[UnseenImage]):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, index: _NumberedRequest) -> UnseenImage:
        encoded = self.images.encoded(index.index)
        try:
            file = None if encoded is None else read_jpeg(encoded)
        except UnusableImageError:
            file = None  # which the images replace
        return UnseenImage(self.images[index.index] if file is None else file, index.sight)
