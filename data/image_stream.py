"""Streams of encoded images, which can only be read in order: endless, mixed, shuffled, and resumed exactly."""

from __future__ import annotations

import logging
import tarfile
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modeling_radio.core.errors import UserError
from modeling_radio.core.seeds import derive_seed
from modeling_radio.data.balance import RowWeights, num_copies, stream_weights
from modeling_radio.data.decoding import EncodedImage, SkippedImages, UnusableImageError
from modeling_radio.data.filters import fault_of, measure
from modeling_radio.data.sources import ImageColumn, is_out_of_reach, open_stream
from modeling_radio.training.recipes.recipe import DataRecipe
from modeling_radio.training.recipes.sections import FiltersRecipe


if TYPE_CHECKING:
    from datasets import IterableDataset


logger = logging.getLogger(__name__)

NO_FILTERS = FiltersRecipe()
MAX_OPEN_SHARDS = 4
"""Shards of one source that are read side by side, so neighbors in a file are not neighbors in a batch. Our choice:
more means more connections, and more to read again after a restart."""

MAX_PIECES = 256
"""Largest number of pieces of a part: its shards, or groups of neighboring ones. Our choice: `datasets` lists all
shards to open one, and every file of an image folder is a shard."""

MAX_UNUSABLE = 100_000
"""Our choice: if none of so many first images of a pass can be used, that is no accident, and a pass may take days."""

WITHOUT_FEATURES = "not in `data.balance.features`"

_BROKEN_FILE = (tarfile.TarError, ValueError, OSError)
"""Errors of `datasets` at a shard that is cut short or damaged; Arrow's are among the last two."""


class EndlessSource:
    """Endless passes through one rank's parts of a source, which take turns; each pass has its own order of shards.

    With weights an image comes as often in a pass as its weight says, up to one, and several times in a row: blocks are
    shuffled later. That depends on its name, the pass and the seed alone.

    Images with an unusable header are left out, and so are those that filters leave out, and the rest of a shard after
    a damaged position. A disk or store that fails ends the run: `datasets` has tried connections again before.

    Args:
        parts: Data sets of `datasets`, which this rank reads side by side.
        column: Their image column.
        seed: Decides the order of the shards.
        skipped: Counts unusable images.
        num_shards: Number of the source's shards, over all ranks.
        share: Number of this rank among those that read these parts, and their number: each takes every n-th image of
            a part.
        filters: Filters of images, except near duplicates.
        used_px: The resolution that images are used at, pixels.
        weights: Frequencies of the images; None for once in each pass.

    Attributes:
        left_out: Number of images that the filters left out since the beginning of the run, by the reason.
    """

    def __init__(  # noqa: PLR0913
        self,
        parts: Sequence[IterableDataset],
        column: ImageColumn,
        seed: int,
        skipped: SkippedImages,
        *,
        num_shards: int,
        share: tuple[int, int] = (0, 1),
        filters: FiltersRecipe = NO_FILTERS,
        used_px: int = 1,
        weights: RowWeights | None = None,
    ) -> None:
        self.parts, self.column, self.seed, self.skipped = parts, column, seed, skipped
        self.num_shards, self.share = num_shards, share
        self.filters, self.used_px, self.weights = filters, used_px, weights
        self.left_out: Counter[str] = Counter()
        self.start_pass(0)

    def __next__(self) -> EncodedImage:
        if not self._copies_left:
            if self.weights is not None:
                self._place_before = self._place()
            num_given = self._num_given  # above 0 after a restart amid the copies of the next image
            self._image, copies = self._next_shown()
            self._copies_left = max(1, copies - num_given)  # with other weights than before there may be fewer
            self._num_given = num_given
        self._copies_left -= 1
        self._num_given = self._num_given + 1 if self._copies_left else 0
        return self._image

    def _next_shown(self) -> tuple[EncodedImage, int]:
        """Return the next image that is shown in this pass, and how often."""
        while True:
            for row in self._rows_left():
                self._num_read += 1
                image = self.column.read(row, f"image {self._num_read} of pass {self.number_of_pass}")
                if self._is_wanted(image) and (copies := self._num_copies(row)):
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
                f"skipped{left_out}). Use fewer ranks, more files, laxer `data.filters`, or another `data.balance`."
            )

    def _num_copies(self, row: Mapping[str, Any]) -> int:
        """Return how often a usable image is shown in this pass."""
        key, weight = "", 1.0
        if self.weights is not None:
            key = self.column.key(row)
            weight = self.weights.of(key, row)
        if weight is None:
            self.left_out[WITHOUT_FEATURES] += 1
            return 0
        self._num_usable += weight > 0
        return 1 if self.weights is None else num_copies(weight, self.number_of_pass, self.seed, key)

    def _is_wanted(self, image: EncodedImage) -> bool:
        """Return whether an image is usable and stays; if not, count it."""
        if not self.skipped.check(image):
            return False
        if not self.filters.is_used:
            return True
        try:
            fault = fault_of(measure(image, with_pixels=self.filters.needs_pixels), self.filters, self.used_px)
        except UnusableImageError as error:
            self.skipped.add(image.name, error)
            return False
        if fault is not None:
            self.left_out[fault] += 1
        return fault is None

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
        self._num_read, self._num_usable = state["num_read"], state["num_usable"]
        self._num_given = state["copies"]

    def start_pass(self, number: int) -> None:
        """Start pass `number` through the source."""
        self._open_pass(number, range(len(self.parts)), [(0, 0, 0)] * len(self.parts))

    def close(self) -> None:
        """Close the files; `start_pass` or `load_state_dict` opens them again."""
        for rows in self._rows:
            rows.close()

    def _open_pass(self, number: int, turns: Iterable[int], positions: Iterable[Sequence[int]]) -> None:
        """Go to a position of a pass.

        Args:
            number: Number of the pass.
            turns: Numbers of the parts that have rows left, the next one first.
            positions: For each part the number of finished pieces, the number of this rank's rows that were read of the
                next one, and the rank whose turn it is where that one begins.
        """
        self.number_of_pass, self._num_read, self._num_usable = number, 0, 0
        self._copies_left = self._num_given = 0
        self._turns, self._positions = deque(turns), [list(position) for position in positions]
        self._rows = [self._rows_of(part) for part in range(len(self.parts))]

    def _rows_left(self) -> Iterator[dict[str, Any]]:
        """Yield a row of each part in turn, as long as it has one."""
        while self._turns:
            number = self._turns.popleft()
            row = next(self._rows[number], None)
            if row is not None:
                self._turns.append(number)
                yield row

    def _rows_of(self, number: int) -> Generator[dict[str, Any]]:
        """Yield the remaining rows of a part in this pass, piece by piece."""
        part, position = self.parts[number], self._positions[number]
        rank, num_ranks = self.share
        num_pieces = min(part.num_shards, MAX_PIECES)
        order = np.random.default_rng([self.seed, self.number_of_pass, number]).permutation(num_pieces)
        for piece in map(int, order[position[0] :]):
            first = (rank - position[2]) % num_ranks + position[1] * num_ranks
            num_rows = 0
            try:
                for num_rows, row in enumerate(part.shard(num_pieces, piece), 1):
                    if num_rows > first and (num_rows - 1 - first) % num_ranks == 0:
                        position[1] += 1
                        yield row
            except _BROKEN_FILE as error:
                if is_out_of_reach(error):  # else images would be left out that an undisturbed run sees
                    message = f"Data source {self.column.source!r} cannot be read any more: {error}."
                    raise UserError(f"{message} The same command goes on.") from error
                lost = f"image {self._num_read + 1} of pass {self.number_of_pass} and what follows it in its shard"
                self.skipped.add(f"{self.column.source}: {lost}", f"unreadable: {error}")
            position[:] = position[0] + 1, 0, (position[2] + num_rows) % num_ranks


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
        used_px: The resolution that images are used at, pixels; filters compare sizes with it.

    Raises:
        ValueError: If a source cannot be opened.
    """
    recipes = data.sources()
    sources = []
    for number, recipe in enumerate(recipes):
        dataset, column = open_stream(recipe)
        parts, share = _parts_of_rank(dataset, rank, num_ranks)
        seed_of_source = derive_seed(seed, "source", number)
        options: dict[str, Any] = {"num_shards": dataset.num_shards, "filters": data.filters, "used_px": used_px}
        if recipe.balance is not None:
            options["weights"] = stream_weights(column, recipe.balance, data.seed)
        sources.append(EndlessSource(parts, column, seed_of_source, skipped, share=share, **options))
    weights = [recipe.weight for recipe in recipes]
    return ImageStream(sources, weights, derive_seed(seed, "blocks", rank), data.shuffle_buffer)


def _parts_of_rank(
    dataset: IterableDataset, rank: int, num_ranks: int
) -> tuple[list[IterableDataset], tuple[int, int]]:
    """Return a rank's parts of a data set, and its share of them: shards of its own if there are enough, or else all.

    Where shards do not divide evenly the first parts have one more, so ranks take parts in turn.
    """
    if dataset.num_shards < num_ranks:
        return [dataset], (rank, num_ranks)
    num_parts = min(MAX_OPEN_SHARDS, dataset.num_shards // num_ranks)
    parts = [dataset.shard(num_ranks * num_parts, rank + part * num_ranks) for part in range(num_parts)]
    return parts, (0, 1)
