"""What loads what is seen of images, ahead of time: images by number, or streams that one process reads.

Data workers decode and crop; streams are read by one process ahead of them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from core.interruption import ignore_stop_signals
from core.seeds import derive_seed
from training.data.decoding import EncodedImage, LeastScale, SkippedImages, to_tensor
from training.data.image_stream import ImageStream, open_image_stream
from training.data.image_table import Images
from training.recipe import Recipe
from training.views.crops import Seen, SeenBatch, Sight, least_scale, look
from training.views.plan import Batch, divide_ranks, used_px


logger = logging.getLogger(__name__)

NUM_SPARES = 4
"""Images that stand by in a streamed batch for those that cannot be decoded, beside the batch's own. Our choice."""

CPU = torch.device("cpu")

Plan = Callable[[], Iterable[Batch]]
Sights = Callable[[Batch], list[Sight]]


class ViewLoader(Protocol):
    """Loads what is seen of the images of planned batches, in order, ahead of time."""

    def views(self, plan: Plan, sights: Sights) -> Iterator[tuple[Batch, list[Seen]]]:
        """Yield each batch with what was seen of it.

        The data workers crop and resize, each crop once, so that only what a viewer takes in travels.

        Args:
            plan: Gives the batches; may be called more than once.
            sights: Says for each image of a batch what is to be seen of it.

        Yields:
            The batch, and for each group of it what was seen.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return how far this rank has read the data, up to the last batch that was yielded, as JSON values."""

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Resume from what `state_dict` returned on each rank."""


@dataclass(frozen=True)
class PartitionStreams:
    """The streams of encoded images that one rank reads.

    Attributes:
        streams: By name of the partition, those that this rank takes part in.
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
                place = (ranks.index(rank), len(ranks))
                streams[name] = open_image_stream(recipe.data, seed, *place, skipped, used[name])
        return cls(streams, rank, num_ranks, skipped)


def build_view_loader(images: Images | PartitionStreams, recipe: Recipe, device: torch.device = CPU) -> ViewLoader:
    """Return the loader for images with random access, or for streams.

    Args:
        images: The data.
        recipe: The recipe.
        device: That the run is on; for a GPU the views are put in page-locked memory.
    """
    is_pinned = device.type == "cuda"
    if isinstance(images, PartitionStreams):
        return StreamedViewLoader(images, recipe, pin_memory=is_pinned)
    return NumberedViewLoader(images, recipe, pin_memory=is_pinned)


class NumberedViewLoader:
    """Views of images with random access: which ones is a pure function of the step, so there is nothing to save.

    Args:
        images: uint8 `(3, height, width)`, RGB, any size.
        recipe: The recipe.
        pin_memory: Put the views in page-locked memory, for a GPU.
    """

    def __init__(self, images: Images, recipe: Recipe, *, pin_memory: bool = False) -> None:
        self.images, self.recipe, self.pin_memory = images, recipe, pin_memory

    def views(self, plan: Plan, sights: Sights) -> Iterator[tuple[Batch, list[Seen]]]:
        loader = DataLoader(
            _NumberedViews(self.images, self.recipe),
            batch_sampler=_NumberedRequests(plan, sights),
            collate_fn=SeenBatch.of,
            num_workers=self.recipe.data.num_workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=self.pin_memory,
        )
        for batch, seen in zip(plan(), loader, strict=True):
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
        scale = _scale_for(index.sight, self.recipe)
        image = self.images[index.index] if scale is None else self.images.draft(index.index, scale)
        return look(image, index.sight, self.recipe.views)


class StreamedViewLoader:
    """Views of streamed images: one process reads files ahead, the data workers decode what it has read.

    The images do not depend on the number of workers. One that cannot be decoded is replaced by a spare one.

    Args:
        streams: What this rank reads.
        recipe: The recipe.
        pin_memory: Put the views in page-locked memory, for a GPU.
    """

    def __init__(self, streams: PartitionStreams, recipe: Recipe, *, pin_memory: bool = False) -> None:
        self.streams, self.recipe, self.pin_memory = streams, recipe, pin_memory
        self._state = _states(streams.streams)

    def views(self, plan: Plan, sights: Sights) -> Iterator[tuple[Batch, list[Seen]]]:
        num_workers = self.recipe.data.num_workers
        reader = DataLoader(
            _StreamedRequests(self.streams.streams, self._state, plan, sights),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=min(num_workers, 1),
            worker_init_fn=ignore_stop_signals,
        )
        states: deque[dict[str, Any]] = deque()
        loader = DataLoader(
            _StreamedViews(self.recipe, self.streams.skipped),
            batch_size=None,
            collate_fn=_unchanged,
            sampler=_noting_states(reader, states),
            num_workers=num_workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=self.pin_memory,
        )
        for batch, seen in zip(plan(), loader, strict=True):
            self._state = states.popleft()
            yield batch, seen.split()

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Resume from each rank's state; begin a new pass for other ranks of a partition, or more or fewer sources.

        States of images by number are empty: after them streams are read from their start.
        """
        if not any(states):
            return
        partitions, num_ranks = self.recipe.partitions, self.streams.num_ranks
        before = {
            partition.name: [rank for rank, state in enumerate(states) if partition.name in state]
            for partition in partitions
        }
        if before != {name: list(ranks) for name, ranks in divide_ranks(partitions, num_ranks).items()}:
            logger.warning(
                "the checkpoint is of %d ranks and this run has %d, or another `rank_share`: they share streamed data "
                "differently, so a new pass through the data begins",
                len(states),
                num_ranks,
            )
        elif _num_sources(states[self.streams.rank]) != _num_sources(self._state):
            logger.warning("the checkpoint is of another number of sources, so a new pass through the data begins")
        else:
            self._state = states[self.streams.rank]
            return
        passes = [source["pass"] for state in states for stream in state.values() for source in stream["sources"]]
        for stream in self.streams.streams.values():
            stream.start_pass(max(passes) + 1)
        self._state = _states(self.streams.streams)


class _StreamedRequest(NamedTuple):
    images: list[EncodedImage]
    spares: list[EncodedImage]
    sights: list[Sight]


class _StreamedRequests(IterableDataset):
    """Reads the encoded images of each planned batch, and says where the streams are after it."""

    def __init__(
        self,
        streams: Mapping[str, ImageStream],
        state: Mapping[str, Any],
        plan: Plan,
        sights: Sights,
    ) -> None:
        self.streams, self.state, self.plan, self.sights = streams, state, plan, sights

    def __iter__(self) -> Iterator[tuple[_StreamedRequest, dict[str, Any]]]:
        for name, stream in self.streams.items():
            stream.load_state_dict(self.state[name])
        try:
            for batch in self.plan():
                yield self._read(batch), _states(self.streams)
        finally:
            for stream in self.streams.values():
                stream.close()

    def _read(self, batch: Batch) -> _StreamedRequest:
        stream = self.streams[batch.partition]
        images, spares = stream.take(len(batch)), stream.spares(NUM_SPARES)
        return _StreamedRequest(images, spares, self.sights(batch))


class _StreamedViews(Dataset[SeenBatch]):
    def __init__(self, recipe: Recipe, skipped: SkippedImages) -> None:
        self.recipe, self.skipped = recipe, skipped

    def __getitem__(self, index: _StreamedRequest) -> SeenBatch:
        seen = []
        for place, sight in enumerate(index.sights):
            picture = _decode_first(index, place, self.recipe, self.skipped)
            seen.append(look(to_tensor(picture), sight, self.recipe.views))
        return SeenBatch.of(seen)


def _decode_first(request: _StreamedRequest, place: int, recipe: Recipe, skipped: SkippedImages) -> Image.Image:
    """Decode an image of a request, or one that stands by where it cannot be decoded."""
    images = [request.images[place], *request.spares, *request.images]
    for image in images:
        picture = skipped.decode(image, _scale_for(request.sights[place], recipe))
        if picture is not None:
            return picture
    raise ValueError(f"{len(images)} images in a row could not be decoded; the first is {images[0].name}.")


def _noting_states(
    reader: Iterable[tuple[_StreamedRequest, dict[str, Any]]], states: deque[dict[str, Any]]
) -> Iterator[_StreamedRequest]:
    for request, state in reader:
        states.append(state)
        yield request


def _states(streams: Mapping[str, ImageStream]) -> dict[str, Any]:
    return {name: stream.state_dict() for name, stream in streams.items()}


def _num_sources(states: Mapping[str, Any]) -> dict[str, int]:
    return {name: len(state["sources"]) for name, state in states.items()}


def _unchanged(item: Any) -> Any:
    """Keep a loader from looking for tensors in what it hands over."""
    return item


def _scale_for(sight: Sight, recipe: Recipe) -> LeastScale | None:
    """Return how far an image may be reduced before it is looked at; None where pixels are to be exact."""
    return (lambda size: least_scale(size, sight, recipe.views)) if recipe.data.jpeg_drafts else None
