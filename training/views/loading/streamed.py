"""Views of streamed images: one process reads files ahead, data workers decode what it has read, or hand it on."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from foundation.interruption import ignore_stop_signals
from foundation.seeds import derive_seed
from training.data.decoding import EncodedImage, SkippedImages, to_tensor
from training.data.image_stream import ImageStream, open_image_stream
from training.recipe import Recipe
from training.views.admission import used_px
from training.views.batches import Batch, divide_ranks
from training.views.loading.base import Plan, Sights, scale_for
from training.views.on_device.looking import UnseenImage, read_jpeg, see_on_device
from training.views.regions import Seen, SeenBatch, Sight, look


logger = logging.getLogger(__name__)

NUM_SPARES = 4
"""Images that stand by in a streamed batch for those that cannot be decoded, beside the batch's own. Our choice."""


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
    def open(cls, recipe: Recipe, rank: int = 0, num_ranks: int = 1) -> "PartitionStreams":
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


class StreamedViewLoader:
    """Views of streamed images: one process reads files ahead, the data workers decode what it has read.

    The images do not depend on the number of workers. One that cannot be decoded is replaced by a spare one.

    Args:
        streams: What this rank reads.
        recipe: The recipe.
        pin_memory: Put the views in page-locked memory, for a GPU.
        device: Where JPEGs are decoded and cut; None for the data workers.
    """

    def __init__(
        self, streams: PartitionStreams, recipe: Recipe, *, pin_memory: bool = False, device: torch.device | None = None
    ) -> None:
        self.streams, self.recipe, self.pin_memory, self.device = streams, recipe, pin_memory, device
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
        views = _StreamedViews if self.device is None else _StreamedFiles
        loader = DataLoader(
            views(self.recipe, self.streams.skipped),
            batch_size=None,
            collate_fn=_unchanged,
            sampler=_noting_states(reader, states),
            num_workers=num_workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=self.pin_memory and self.device is None,
        )
        for batch, seen in zip(plan(), loader, strict=True):
            self._state = states.popleft()
            if self.device is not None:
                seen = see_on_device(seen, self.recipe.views, self.device, self.streams.skipped)
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


class _StreamedFiles(Dataset[list[UnseenImage]]):
    def __init__(self, recipe: Recipe, skipped: SkippedImages) -> None:
        self.recipe, self.skipped = recipe, skipped

    def __getitem__(self, index: _StreamedRequest) -> list[UnseenImage]:
        unseen = []
        for place, (image, sight) in enumerate(zip(index.images, index.sights, strict=True)):
            file = read_jpeg(image)  # the stream has looked at its header
            pixels = file or to_tensor(_decode_first(index, place, self.recipe, self.skipped))
            unseen.append(UnseenImage(pixels, sight))
        return unseen


def _decode_first(request: _StreamedRequest, place: int, recipe: Recipe, skipped: SkippedImages) -> Image.Image:
    """Decode an image of a request, or one that stands by where it cannot be decoded."""
    images = [request.images[place], *request.spares, *request.images]
    for image in images:
        picture = skipped.decode(image, scale_for(request.sights[place], recipe))
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
