"""Loaders of views: data workers decode and crop the images of planned batches ahead of time.

Images come by number, or from streams, which one more process reads.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from modeling_radio.core.interruption import ignore_stop_signals
from modeling_radio.core.seeds import derive_seed
from modeling_radio.data.decoding import EncodedImage, LeastScale, SkippedImages, to_tensor
from modeling_radio.data.image_stream import ImageStream, open_image_stream
from modeling_radio.data.image_table import Images
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.views.crops import CropsBatch, CropSpec, GroupCrops, cut_crops, least_scale
from modeling_radio.training.views.dealing import divide_ranks
from modeling_radio.training.views.plan import PlannedBatch
from modeling_radio.training.views.shapes import used_px


logger = logging.getLogger(__name__)

NUM_SPARES = 4
"""Images of a streamed batch that replace those that cannot be decoded, beside the batch's own. Our choice."""

CPU = torch.device("cpu")

PlanBatches = Callable[[], Iterable[PlannedBatch]]
CropSpecs = Callable[[PlannedBatch], list[CropSpec]]
Note = TypeVar("Note")


class ViewLoader(Protocol):
    """Loads the views of planned batches, in order, ahead of time."""

    def views(self, plan: PlanBatches, crop_specs: CropSpecs) -> Iterator[tuple[PlannedBatch, list[GroupCrops]]]:
        """Yield each batch with the views of each of its groups, and their alignments on the device of the run.

        The data workers crop and resize each crop once, so only the pixels that a consumer takes in travel.

        Args:
            plan: Returns the batches; called once.
            crop_specs: Returns the crops that are wanted of each image of a batch.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return how far this rank has read the data, up to the last batch that was yielded, as JSON values."""

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Resume from what `state_dict` returned on each rank."""


@dataclass(frozen=True)
class PartitionStreams:
    """The streams of encoded images that one rank reads.

    Attributes:
        streams: By name of the partition, for the partitions that this rank takes part in.
        rank: Rank of this process.
        num_ranks: Number of ranks.
        skipped: Counts unusable images.
    """

    streams: Mapping[str, ImageStream]
    rank: int
    num_ranks: int
    skipped: SkippedImages

    @classmethod
    def open(cls, recipe: Recipe, rank: int = 0, num_ranks: int = 1) -> PartitionStreams:
        """Open the recipe's sources, once for each partition: the ranks of a partition share the images.

        Raises:
            ValueError: If a source cannot be opened.
        """
        skipped, streams = SkippedImages(), {}
        used = {partition.name: used_px(recipe, partition) for partition in recipe.partitions}
        for name, ranks in divide_ranks(recipe.partitions, num_ranks).items():
            if rank in ranks:
                seed = derive_seed(recipe.seed, "stream", name)
                streams[name] = open_image_stream(recipe.data, seed, ranks.index(rank), len(ranks), skipped, used[name])
        return cls(streams, rank, num_ranks, skipped)


def build_view_loader(images: Images | PartitionStreams, recipe: Recipe, device: torch.device = CPU) -> ViewLoader:
    """Return the loader for images with random access, or for streams.

    Args:
        images: The data.
        recipe: The recipe.
        device: Device of the run; for a GPU the views are put in page-locked memory.
    """
    if isinstance(images, PartitionStreams):
        return IterableViewLoader(images, recipe, device)
    return MapStyleViewLoader(images, recipe, device)


class MapStyleViewLoader:
    """Views of images with random access. They are a pure function of the step, so there is no state to save.

    Args:
        images: uint8 `(3, height, width)`, RGB, any size; or float32 in [0, 1] of other channels.
        recipe: The recipe.
        device: Device of the run.
    """

    def __init__(self, images: Images, recipe: Recipe, device: torch.device = CPU) -> None:
        self.dataset, self.recipe, self.device = _MapStyleViews(images, recipe), recipe, device

    def views(self, plan: PlanBatches, crop_specs: CropSpecs) -> Iterator[tuple[PlannedBatch, list[GroupCrops]]]:
        requests = ((batch, list(zip(batch.indices, crop_specs(batch), strict=True))) for batch in plan())
        yield from _load_ahead(self.dataset, requests, self.recipe, self.device)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        return


class IterableViewLoader:
    """Views of streamed images: one process reads files ahead, the data workers decode what it has read.

    The images do not depend on the number of workers. One that cannot be decoded is replaced by a spare one.

    Args:
        streams: The streams of this rank.
        recipe: The recipe.
        device: Device of the run.
    """

    def __init__(self, streams: PartitionStreams, recipe: Recipe, device: torch.device = CPU) -> None:
        self.streams, self.recipe, self.device = streams, recipe, device
        self._state = _states(streams.streams)

    def views(self, plan: PlanBatches, crop_specs: CropSpecs) -> Iterator[tuple[PlannedBatch, list[GroupCrops]]]:
        reader = DataLoader(
            _StreamReader(self.streams.streams, self._state, plan, crop_specs),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=min(self.recipe.data.num_workers, 1),
            worker_init_fn=ignore_stop_signals,
        )
        dataset = _IterableViews(self.recipe, self.streams.skipped)
        for (batch, state), crops in _load_ahead(dataset, reader, self.recipe, self.device):
            self._state = state
            yield batch, crops

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Resume from each rank's state. Begin a new pass if a partition's ranks or the number of sources changed.

        The states of images by number are empty: after them streams are read from their start.
        """
        if not any(states):
            return
        partitions, num_ranks = self.recipe.partitions, self.streams.num_ranks
        before = {each.name: [rank for rank, state in enumerate(states) if each.name in state] for each in partitions}
        if before != {name: list(ranks) for name, ranks in divide_ranks(partitions, num_ranks).items()}:
            logger.warning(
                "the checkpoint has %d ranks and this run %d, or another `rank_share`. Streamed data are divided "
                "differently, so a new pass through the data begins",
                len(states),
                num_ranks,
            )
        elif _num_sources(states[self.streams.rank]) != _num_sources(self._state):
            logger.warning("the checkpoint has another number of sources, so a new pass through the data begins")
        else:
            self._state = states[self.streams.rank]
            return
        passes = [source["pass"] for state in states for stream in state.values() for source in stream["sources"]]
        for stream in self.streams.streams.values():
            stream.start_pass(max(passes) + 1)
        self._state = _states(self.streams.streams)


def _states(streams: Mapping[str, ImageStream]) -> dict[str, Any]:
    return {name: stream.state_dict() for name, stream in streams.items()}


def _num_sources(states: Mapping[str, Any]) -> dict[str, int]:
    return {name: len(state["sources"]) for name, state in states.items()}


def _load_ahead(
    dataset: Dataset[CropsBatch], requests: Iterable[tuple[Note, Any]], recipe: Recipe, device: torch.device
) -> Iterator[tuple[Note, list[GroupCrops]]]:
    """Yield the views of each request, which data workers make, with the note that came with it.

    Requests are read ahead of the views; the notes wait in a queue for them.
    """
    notes: deque[Note] = deque()

    def without_notes() -> Iterator[Any]:
        for note, request in requests:
            notes.append(note)
            yield request

    loader = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_unchanged,
        sampler=without_notes(),
        num_workers=recipe.data.num_workers,
        worker_init_fn=ignore_stop_signals,
        pin_memory=device.type == "cuda",
    )
    for crops in loader:
        yield notes.popleft(), crops.split(device)


def _unchanged(item: Any) -> Any:
    """Keep a loader from converting what it hands over."""
    return item


class _MapStyleViews(Dataset[CropsBatch]):
    """Views of batches that are given as numbers of images with the crops that are wanted of each."""

    def __init__(self, images: Images, recipe: Recipe) -> None:
        self.images, self.recipe = images, recipe

    def __getitem__(self, index: Sequence[tuple[int, CropSpec]]) -> CropsBatch:
        views, rgb = self.recipe.views, self.recipe.data.rgb_channels
        crops = [cut_crops(self._image(number, spec), spec, views, rgb) for number, spec in index]
        return CropsBatch.of(crops, [spec for _, spec in index])

    def _image(self, number: int, spec: CropSpec) -> Tensor:
        return self.images.draft(number, _scale_for(spec, self.recipe))


class _StreamRequest(NamedTuple):
    """The encoded images of a batch, spare ones, and the crops that are wanted of each image."""

    images: list[EncodedImage]
    spares: list[EncodedImage]
    crop_specs: list[CropSpec]


class _StreamReader(IterableDataset):
    """Reads the encoded images of each planned batch.

    Yields the batch and the state of the streams after it, and the request for its views.
    """

    def __init__(
        self, streams: Mapping[str, ImageStream], state: Mapping[str, Any], plan: PlanBatches, crop_specs: CropSpecs
    ) -> None:
        self.streams, self.state, self.plan, self.crop_specs = streams, state, plan, crop_specs

    def __iter__(self) -> Iterator[tuple[tuple[PlannedBatch, dict[str, Any]], _StreamRequest]]:
        for name, stream in self.streams.items():
            stream.load_state_dict(self.state[name])
        try:
            for batch in self.plan():
                stream = self.streams[batch.partition]
                images = stream.take(len(batch)) if batch.weight else stream.spares(1)
                request = _StreamRequest(images, stream.spares(NUM_SPARES), self.crop_specs(batch))
                yield (batch, _states(self.streams)), request
        finally:
            for stream in self.streams.values():
                stream.close()


class _IterableViews(Dataset[CropsBatch]):
    def __init__(self, recipe: Recipe, skipped: SkippedImages) -> None:
        self.recipe, self.skipped = recipe, skipped

    def __getitem__(self, index: _StreamRequest) -> CropsBatch:
        pixels = (self._first_decoded(index, slot) for slot in range(len(index.crop_specs)))
        crops = [cut_crops(*each, self.recipe.views) for each in zip(pixels, index.crop_specs, strict=True)]
        return CropsBatch.of(crops, index.crop_specs)

    def _first_decoded(self, request: _StreamRequest, slot: int) -> Tensor:
        """Decode an image of a request, or a spare one where it cannot be decoded."""
        images = [request.images[slot], *request.spares, *request.images]
        for image in images:
            rgb = self.skipped.decode(image, _scale_for(request.crop_specs[slot], self.recipe))
            if rgb is not None:
                return to_tensor(rgb)
        raise ValueError(f"{len(images)} images in a row could not be decoded; the first is {images[0].name}.")


def _scale_for(spec: CropSpec, recipe: Recipe) -> LeastScale:
    """Return how far an image may be reduced while it is decoded."""
    return lambda size: least_scale(size, spec, recipe.views)
