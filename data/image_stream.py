"""Streams of encoded images, which can only be read in order: endless, mixed, shuffled, and resumed exactly."""

from __future__ import annotations

import itertools
import logging
import tarfile
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from modeling_radio.core.errors import UserError
from modeling_radio.core.seeds import derive_seed
from modeling_radio.data.decoding import EncodedImage, SkippedImages, check_header
from modeling_radio.data.settings import DataRecipe
from modeling_radio.data.short_sides import SMALL
from modeling_radio.data.sources import ImageColumn, OpenedSource, file_sizes, is_out_of_reach, open_stream
from modeling_radio.data.weights import num_copies, weight_of


if TYPE_CHECKING:
    from datasets import IterableDataset


logger = logging.getLogger(__name__)

MAX_OPEN_SHARDS = 4
"""Shards of one source that are read side by side, so neighbors in a file are not neighbors in a batch. Our choice:
more means more connections, and more to read again after a restart."""

MAX_PIECES = 256
"""Largest number of pieces of a part: its shards, or groups of neighboring ones. Our choice: `datasets` lists all
shards to open one, and every file of an image folder is a shard."""

MAX_UNUSABLE = 100_000
"""Our choice: if none of so many first images of a pass can be used, that is no accident, and a pass may take days."""

MANY_SHARDS = 100
"""Our choice: with so many shards for each rank it does not matter that they differ in size, and sizes are not asked
for: sums of a hundred differ little."""

SAME_SIZE = 0.01
"""Our choice: shards whose sizes differ by no more than this share count as equal when they are dealt to ranks."""

_SAMPLED_SHARDS, _SAMPLED_ROWS = 16, 64
"""Shards of a source, and rows of each, whose weights are read to scale them. Our choice: a scale is the same for all
images, so it only decides how far copies of an image spread over passes."""

_BROKEN_FILE = (tarfile.TarError, ValueError, OSError)
"""Errors of `datasets` at a shard that is cut short or damaged; Arrow's are among the last two."""


class Share(NamedTuple):
    """One of the ranks that read the same shards, of whose images each takes every n-th.

    Attributes:
        rank: Its number.
        num_ranks: Number of ranks.
    """

    rank: int
    num_ranks: int


class EndlessSource:
    """Endless passes through one rank's parts of a source, which take turns; each pass has its own order of shards.

    With weights an image comes as often in a pass as its weight says, up to one, and several times in a row: blocks are
    shuffled later. That depends on its name, the pass and the seed alone.

    Images with an unusable header are left out, and so are those that are too small, and the rest of a shard after a
    damaged position. A disk or store that fails ends the run: `datasets` has tried connections again before.

    Args:
        parts: Data sets of `datasets` that this rank reads side by side.
        column: Their image column.
        seed: Decides the order of the shards.
        skipped: Counts unusable images.
        num_shards: Number of the source's shards, over all ranks.
        share: This rank's share of the last part, which all ranks read; None if this rank reads all parts alone.
        least_px: Shorter side below which images are left out.
        scale: Factor from an image's weight to how often it is shown in a pass; None without weights.

    Attributes:
        left_out: Number of images that were left out since the beginning of the run, by the reason.
    """

    def __init__(
        self,
        parts: Sequence[IterableDataset],
        column: ImageColumn,
        seed: int,
        skipped: SkippedImages,
        *,
        num_shards: int,
        share: Share | None = None,
        least_px: float = 0,
        scale: float | None = None,
    ) -> None:
        self.parts, self.column, self.seed, self.skipped = parts, column, seed, skipped
        self.num_shards, self.share, self.least_px, self.scale = num_shards, share, least_px, scale
        self.left_out: Counter[str] = Counter()
        self._num_dealt = 0
        self.start_pass(0)

    def __next__(self) -> EncodedImage:
        if not self._copies_left:
            if self.scale is not None:
                self._place_before = self._place()
            num_given = self._num_given  # above 0 after a restart amid the copies of the next image
            self._image, copies = self._next_shown()
            self._copies_left = max(1, copies - num_given)  # with other weights than before there may be fewer
            self._num_given = num_given
        self._copies_left -= 1
        self._num_given = self._num_given + 1 if self._copies_left else 0
        return self._image

    def _next_shown(self) -> tuple[EncodedImage, int]:
        """Return the next image that this rank shows in this pass, and how often."""
        while True:
            for part, row in self._rows_left():
                self._num_read += 1
                image = self.column.read(row, f"image {self._num_read} of pass {self.number_of_pass}")
                if self._is_wanted(image) and (copies := self._own_copies(part, row)):
                    return image, copies
                if self._num_read >= MAX_UNUSABLE:
                    self._check_usable()
            self._check_usable()
            self.start_pass(self.number_of_pass + 1)

    def _check_usable(self) -> None:
        if not self._num_usable:
            left_out = f", left out {dict(self.left_out)}" if self.left_out else ""
            raise ValueError(
                f"Data source {self.column.source!r} has no usable image for one of the ranks ({self._num_read} "
                f"skipped{left_out}). Use fewer ranks, more files, or other `data.min_side_ratio` or `data.weights`."
            )

    def _own_copies(self, part: int, row: Mapping[str, Any]) -> int:
        """Return how often this rank shows a usable image in this pass; the copies of shared ones go around."""
        copies, self._num_usable = 1, self._num_usable + 1
        if self.scale is not None:
            key = self.column.key(row)
            weight = self.scale * weight_of(self.column.weight(row), key)
            copies = num_copies(weight, self.number_of_pass, self.seed, key)
        if self.share is None or part < len(self.parts) - 1:
            return copies
        before, self._num_dealt = self._num_dealt, self._num_dealt + copies
        ends = [(number - self.share.rank - 1) // self.share.num_ranks for number in (before, self._num_dealt)]
        return ends[1] - ends[0]

    def _is_wanted(self, image: EncodedImage) -> bool:
        """Return whether an image is usable and stays; if not, count it."""
        if not self.skipped.check(image):
            return False
        is_small = self.least_px > 0 and check_header(image) < self.least_px
        self.left_out.update([SMALL] * is_small)
        return not is_small

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the source, as JSON values; amid the copies of an image that before it."""
        return {**(self._place_before if self._copies_left else self._place()), "copies": self._num_given}

    def _place(self) -> dict[str, Any]:
        return {
            "left_out": dict(self.left_out),
            "num_shards": self.num_shards,
            "pass": self.number_of_pass,
            "num_read": self._num_read,
            "num_usable": self._num_usable,
            "num_dealt": self._num_dealt,
            "turns": list(self._turns),
            "places": [list(position) for position in self._positions],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; if the source had other shards then, with a new pass."""
        self.left_out = Counter(state["left_out"])
        if state["num_shards"] != self.num_shards:
            logger.warning(
                "%s: the checkpoint knows other shards than the %d that exist now, so a new pass begins",
                self.column.source,
                self.num_shards,
            )
            self.start_pass(state["pass"] + 1)
            return
        self._open_pass(state["pass"], state["turns"], state["places"])
        self._num_read, self._num_usable, self._num_dealt = state["num_read"], state["num_usable"], state["num_dealt"]
        self._num_given = state["copies"]

    def start_pass(self, number: int) -> None:
        """Start pass `number` through the source."""
        self._open_pass(number, range(len(self.parts)), [(0, 0)] * len(self.parts))

    def close(self) -> None:
        """Close the files; `start_pass` or `load_state_dict` opens them again."""
        for rows in self._rows:
            rows.close()

    def _open_pass(self, number: int, turns: Iterable[int], positions: Iterable[Sequence[int]]) -> None:
        """Go to a position of a pass.

        Args:
            number: Number of the pass.
            turns: Numbers of the parts that have rows left, the next one first.
            positions: Progress in each part: number of finished pieces, and of rows that were read of the next one.
        """
        self.number_of_pass, self._num_read, self._num_usable = number, 0, 0
        self._copies_left = self._num_given = 0
        self._turns, self._positions = deque(turns), [list(position) for position in positions]
        self._rows = [self._rows_of(part) for part in range(len(self.parts))]

    def _rows_left(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield a row of each part in turn, with the part's number, as long as it has one."""
        while self._turns:
            number = self._turns.popleft()
            row = next(self._rows[number], None)
            if row is not None:
                self._turns.append(number)
                yield number, row

    def _rows_of(self, number: int) -> Generator[dict[str, Any]]:
        """Yield the remaining rows of a part in this pass, piece by piece."""
        part, position = self.parts[number], self._positions[number]
        num_pieces = min(part.num_shards, MAX_PIECES)
        # All ranks have as many parts, so the last one has the same number, and the same order, on those that share it.
        order = np.random.default_rng([self.seed, self.number_of_pass, number]).permutation(num_pieces)
        for piece in map(int, order[position[0] :]):
            try:
                for row in itertools.islice(part.shard(num_pieces, piece), position[1], None):
                    position[1] += 1
                    yield row
            except _BROKEN_FILE as error:
                if is_out_of_reach(error):  # else images would be left out that an undisturbed run sees
                    message = f"Data source {self.column.source!r} cannot be read any more: {error}."
                    raise UserError(f"{message} The same command goes on.") from error
                lost = f"image {self._num_read + 1} of pass {self.number_of_pass} and what follows it in its shard"
                self.skipped.add(f"{self.column.source}: {lost}", f"unreadable: {error}")
            position[:] = position[0] + 1, 0


class ImageStream:
    """One rank's endless sequence of encoded images, drawn from all sources by weight and shuffled block by block.

    A block is read whole and permuted, so its state is small and exact: the state of the sources at the beginning of
    the block, and a position within it. A sliding shuffle buffer cannot be resumed without its content.

    Args:
        sources: The sources to mix.
        weights: Share of each source; they sum to 1.
        seed: Decides the mixture and the permutations.
        block_size: Images that are shuffled together.
    """

    def __init__(self, sources: Sequence[EndlessSource], weights: Sequence[float], seed: int, block_size: int) -> None:
        self.sources, self.seed, self.block_size = sources, seed, block_size
        self._thresholds = np.cumsum(weights)[:-1]
        self._block_number, self._position = 0, 0
        self._block: list[EncodedImage] = []
        self._source_states = [source.state_dict() for source in sources]

    def take(self, number: int) -> list[EncodedImage]:
        """Return the next images."""
        return [self._next() for _ in range(number)]

    def spares(self, number: int) -> list[EncodedImage]:
        """Return upcoming images of the block without consuming them."""
        if not self._block:
            self._block = self._read_block()
        return [self._block[(self._position + offset) % self.block_size] for offset in range(number)]

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream, as JSON values."""
        return {"block": self._block_number, "place": self._position, "sources": self._source_states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same sources."""
        self._block_number, self._position = state["block"], state["place"]
        self._source_states, self._block = state["sources"], []
        for source, source_state in zip(self.sources, self._source_states, strict=True):
            source.load_state_dict(source_state)

    def start_pass(self, number: int) -> None:
        """Start pass `number` through all sources."""
        for source in self.sources:
            source.start_pass(number)
        self._block_number, self._position, self._block = 0, 0, []
        self._source_states = [source.state_dict() for source in self.sources]

    def close(self) -> None:
        """Close all files; `load_state_dict` opens them again."""
        for source in self.sources:
            source.close()

    def _next(self) -> EncodedImage:
        if not self._block:  # also after a restart at the end of a block, because the next one begins there
            self._block = self._read_block()
        if self._position == self.block_size:
            self._block_number, self._position = self._block_number + 1, 0
            self._source_states = [source.state_dict() for source in self.sources]
            self._block = self._read_block()
        self._position += 1
        return self._block[self._position - 1]

    def _read_block(self) -> list[EncodedImage]:
        random = np.random.default_rng([self.seed, self._block_number])
        choices = np.searchsorted(self._thresholds, random.random(self.block_size), side="right")
        images = [next(self.sources[choice]) for choice in choices]
        return [images[position] for position in random.permutation(self.block_size)]


def open_image_stream(
    data: DataRecipe, seed: int, rank: int, num_ranks: int, skipped: SkippedImages, used_px: int = 1
) -> ImageStream:
    """Open all sources of a recipe for one of the ranks that share the images.

    Args:
        data: The sources.
        seed: Decides the order of the images; the same on all of those ranks.
        rank: Rank of this process among those.
        num_ranks: Number of those ranks, which see different images.
        skipped: Counts unusable images.
        used_px: The resolution that images are used at, pixels; `data.min_side_ratio` is a multiple of it.

    Raises:
        ValueError: If a source cannot be opened.
    """
    recipes = data.sources()
    sources = []
    for number, recipe in enumerate(recipes):
        opened = open_stream(recipe)
        parts, share = deal(opened, rank, num_ranks)
        seed_of_source = derive_seed(seed, "source", number)
        options: dict[str, Any] = {"num_shards": opened.dataset.num_shards, "share": share}
        options["least_px"] = (data.min_side_ratio or 0) * used_px
        options["scale"] = None if recipe.weights is None else _scale_of(opened)
        sources.append(EndlessSource(parts, opened.column, seed_of_source, skipped, **options))
    weights = [recipe.weight for recipe in recipes]
    return ImageStream(sources, weights, derive_seed(seed, "blocks", rank), data.shuffle_buffer)


def deal(opened: OpenedSource, rank: int, num_ranks: int) -> tuple[list[IterableDataset], Share | None]:
    """Return what a rank reads of a source, so that over all ranks every image is shown equally often.

    All ranks read all shards of a source with weights, or one with few shards that `datasets` reads, and each takes
    every n-th image. Of others each rank has shards of its own: as many as there are ranks are dealt at a time, whose
    sizes differ by no more than `SAME_SIZE`. Those without such companions are read by all.

    Args:
        opened: The source.
        rank: Number of this rank.
        num_ranks: Number of ranks.

    Returns:
        The parts, and this rank's share of the last one if all ranks read it.
    """
    everything, num_shards = opened.dataset, opened.dataset.num_shards
    has_weights = opened.column.weights is not None
    if num_ranks == 1 or (num_shards >= MANY_SHARDS * num_ranks and not has_weights):
        num_parts = min(MAX_OPEN_SHARDS, num_shards // num_ranks)
        return [everything.shard(num_ranks * num_parts, rank + part * num_ranks) for part in range(num_parts)], None
    share = Share(rank, num_ranks)
    if has_weights or opened.files is None or opened.read is None or num_shards < num_ranks:
        return [everything], share
    own, shared = [], []
    sizes = dict(zip(opened.files, file_sizes(opened.files), strict=True))
    left = deque(sorted(opened.files, key=sizes.__getitem__))
    while left:
        if len(left) >= num_ranks and sizes[left[num_ranks - 1]] <= (1 + SAME_SIZE) * sizes[left[0]]:
            own.append([left.popleft() for _ in range(num_ranks)][rank])
        else:
            shared.append(left.popleft())
    num_parts = min(MAX_OPEN_SHARDS, len(own))
    parts = [opened.read(own[part::num_parts]) for part in range(num_parts)]
    return ([*parts, opened.read(shared)], share) if shared else (parts, None)


def _scale_of(opened: OpenedSource) -> float:
    """Return the inverse of the mean weight of some images of a source, the same on all ranks."""
    num_shards = opened.dataset.num_shards
    num_pieces = min(num_shards, _SAMPLED_SHARDS)
    weights = [
        weight_of(opened.column.weight(row), opened.column.key(row))
        for piece in range(num_pieces)
        for row in itertools.islice(opened.dataset.shard(num_pieces, piece), _SAMPLED_ROWS)
    ]
    return len(weights) / sum(weights) if any(weights) else 1.0
