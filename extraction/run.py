"""A whole extraction: missing rows are encoded and written, by any number of workers, until all are there."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from modeling_radio.core.files import remove_abandoned
from modeling_radio.core.ranks import device_of_process, of_all_ranks, on_first_rank, rank_and_count
from modeling_radio.core.seeds import make_generator
from modeling_radio.core.settings import hash_of
from modeling_radio.core.tables import counted
from modeling_radio.data.labeled.folders import TRAIN
from modeling_radio.data.sources import public_name
from modeling_radio.evaluation.models.radio import tiles_of
from modeling_radio.extraction.claims import WAIT_S, WORKERS, Claims
from modeling_radio.extraction.columns import (
    PCA_FILE,
    Storage,
    features_of,
    fit_bases,
    load_bases,
    save_bases,
    table_of,
)
from modeling_radio.extraction.embedder import Embedder
from modeling_radio.extraction.engine import make_on_daft
from modeling_radio.extraction.settings import ExtractionSettings
from modeling_radio.extraction.shards import (
    AGAIN,
    FOLDER,
    MANIFEST,
    SUMS,
    Shard,
    Sums,
    begin,
    check_folder,
    done_shards,
    hash_in,
    lines_of_sums,
    read_sums,
    with_rows,
    write_shard,
)
from modeling_radio.extraction.source import ImageBatch, SourceSplit, open_source
from modeling_radio.extraction.store import Store
from modeling_radio.extraction.streamed import StreamedSplit


if TYPE_CHECKING:
    import pyarrow

AnySplit = SourceSplit | StreamedSplit
PCA_IMAGES = 256
"""Our choice: of a ViT-H at 512 px 260 thousand patches, over a hundred for each dimension."""


@dataclass(frozen=True)
class Extraction:
    """Parts of an extraction.

    Attributes:
        settings: Settings of the run.
        embedder: The model, and what is read of it.
        splits: Images by split.
    """

    settings: ExtractionSettings
    embedder: Embedder
    splits: Mapping[str, AnySplit]

    def shards(self) -> list[Shard]:
        """Return all files."""
        return [shard for split in self.splits.values() for shard in split.shards(self.settings.images_of_shard)]

    def facts(self) -> dict[str, Any]:
        """Return everything that decides the rows: another run with the same facts writes the same rows."""
        name, _, hub_id = public_name(str(self.settings.data))
        return {
            "settings": self.settings.of_rows() | {"adaptors": sorted(self.embedder.wanted.adaptors)},
            "source": {"name": name, "hub_id": hub_id},
            "model": {"weights and processor": hash_of({"model": self.embedder.model.fingerprint()})[:16]},
            "images": {name: split.state() for name, split in self.splits.items()},
        }


@dataclass(frozen=True)
class Written:
    """Result of an extraction.

    Attributes:
        rows: Rows of each split.
        num_files: Files of these rows.
        num_bytes: Size of these files.
        num_new: Images that this run encoded, on all ranks.
        seconds: Time of this run.
        role: "completed" if this run finished the data set, "helped" if another one did meanwhile, "found" if all was
            there.
    """

    rows: Mapping[str, int]
    num_files: int
    num_bytes: int
    num_new: int
    seconds: float
    role: Literal["completed", "helped", "found"]

    @property
    def num_rows(self) -> int:
        """Rows of the data set."""
        return sum(self.rows.values())

    def __str__(self) -> str:
        speed = f"{self.num_new} encoded now, {self.num_new / self.seconds:.1f} images/s"
        how = speed if self.num_new else "all were there" if self.role == "found" else "others encoded them"
        images, files = counted(self.num_rows, "image"), counted(self.num_files, "file")
        return f"{images} in {files}, {self.num_bytes / 1e6:.1f} MB ({how})"


def open_extraction(settings: ExtractionSettings) -> Extraction:
    """Open model and images; joins the other processes where a launcher started several.

    Raises:
        ValueError: If model or images do not open, or lack an adaptor or column that the settings name.
    """
    data, output = Path(str(settings.data)).expanduser(), Store(settings.output).folder
    if data.is_dir() and output is not None and output.resolve().is_relative_to(data.resolve()):
        raise ValueError(
            f"`output` must lie outside `data`, where it would be read as data, got {str(settings.output)!r}."
        )
    embedder = Embedder(
        settings.checkpoint,
        "features" if settings.dense else "summary",
        adaptors=settings.adaptors,
        size=settings.size,
        dtype=settings.dtype,
        device=None if settings.device is None else device_of_process(settings.device),
        tiles=tiles_of(settings),
    )
    _ = embedder.model  # a model that does not open is reported first
    streamed = {TRAIN: StreamedSplit(settings)} if settings.streaming else None
    return Extraction(settings, embedder, open_source(settings) if streamed is None else streamed)


def extract(extraction: Extraction) -> Written:
    """Write the missing rows together with all others who do; return when all are there.

    Files are the same for any number of workers and interruptions. Workers need no meeting: any process that is started
    with the same settings claims files that are missing, and those of workers that died.

    Raises:
        ValueError: If the folder belongs to another extraction, an image cannot be decoded, or an output not be stored.
        WriteError: If writing fails, for example on a full disk.
    """
    store, shards, facts = Store(extraction.settings.output), extraction.shards(), extraction.facts()
    if len({hash_of(each) for each in of_all_ranks(facts)}) > 1:
        raise ValueError("`data` and `checkpoint` must be the same on every rank, got different ones.")
    on_first_rank(lambda: check_folder(store))
    claims = Claims(store)
    with claims.at_work():
        team = of_all_ranks(claims.worker)
        if not set(team) <= set(store.names(WORKERS)):
            raise ValueError(f"`output` must be a folder that all machines see, got {str(store)!r}. Name another.")

        def start() -> bool:
            with claims.alone("begin"):
                others = claims.others(team)
                begin(store, facts, others=others)
                claims.remove_abandoned(FOLDER)
                if not others and store.folder is not None:
                    remove_abandoned(store.folder)  # of a run that was killed as it wrote its card
                if extraction.settings.pca is not None:
                    _find_bases(extraction, store)
            return others

        has_others = on_first_rank(start)
        done = on_first_rank(lambda: done_shards(store))
        if not has_others and store.folder is not None:  # object stores watch over their contents themselves
            _check_sums(store, [shard.path for shard in shards if shard.path in done])
        started, missing = time.perf_counter(), [each for each, shard in enumerate(shards) if shard.path not in done]
        num_new = make_on_daft(extraction.settings, missing, FileMaker) if extraction.settings.engine and missing else 0
        num_new += sum(of_all_ranks(_write_missing(extraction, store, claims, shards)))
        seconds = time.perf_counter() - started
        return on_first_rank(lambda: _complete(extraction, store, claims, num_new, seconds, was_done=not missing))


def write_some(extraction: Extraction, numbers: Sequence[int]) -> int:
    """Write those of some files that nobody has claimed, in a data set that has begun; return the number of rows.

    Args:
        extraction: Parts of the extraction.
        numbers: Numbers of the files.
    """
    store, shards = Store(extraction.settings.output), extraction.shards()
    claims = Claims(store)
    with claims.at_work(), tqdm(disable=True) as progress:
        some = [shards[number] for number in numbers]
        return _write_claimed(extraction, claims, some, Sums(store, claims.worker), progress)


class FileMaker:
    """Makes files in a worker of Daft; it opens model and images once.

    Args:
        settings: Settings of the extraction, as plain data.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.extraction = open_extraction(ExtractionSettings(**settings))

    def make(self, number: int) -> int:
        """Make a file unless it is there or another worker makes it; return the number of rows that were written."""
        return write_some(self.extraction, [number])


def _write_missing(extraction: Extraction, store: Store, claims: Claims, shards: list[Shard]) -> int:
    """Write files until all are there, and return the number of rows that this worker wrote."""
    sums, num_new = Sums(store, claims.worker), 0

    def missing() -> list[Shard]:
        done = done_shards(store)
        return [shard for shard in shards if shard.path not in done]

    # disable=None: tqdm hides itself where stderr is no terminal.
    with tqdm(desc="features", unit=" images", disable=None) as progress:
        while left := missing():
            written = _write_claimed(extraction, claims, left, sums, progress)
            num_new += written
            if not written:
                time.sleep(WAIT_S)  # others hold the rest
    return num_new


def _write_claimed(extraction: Extraction, claims: Claims, shards: list[Shard], sums: Sums, progress: tqdm) -> int:
    """Write those of some files that this worker can claim, and return the number of rows."""
    settings, store, bases, num_rows = extraction.settings, claims.store, {}, 0
    if settings.pca is not None:
        with store.reading(PCA_FILE) as path:
            bases = load_bases(path)
    storage = Storage(settings.vector_dtype, settings.pool, bases)
    for split in extraction.splits.values():
        of_split = [shard for shard in shards if shard.split == split.name]
        for shard, tables in _claimed(extraction, storage, store, claims, split, of_split):
            counted = _Counted(tables, progress)
            write_shard(store, shard.path, counted, sums)
            claims.give_back(shard.name)
            num_rows += counted.num_rows
    return num_rows


class _Counted:
    """Tables whose rows are counted as they are read."""

    def __init__(self, tables: Iterator[pyarrow.Table], progress: tqdm) -> None:
        self.tables, self.progress, self.num_rows = tables, progress, 0

    def __iter__(self) -> Iterator[pyarrow.Table]:
        for table in self.tables:
            self.num_rows += table.num_rows
            self.progress.update(table.num_rows)
            yield table


def _claimed(
    extraction: Extraction, storage: Storage, store: Store, claims: Claims, split: AnySplit, shards: list[Shard]
) -> Iterator[tuple[Shard, Iterator[pyarrow.Table]]]:
    """Yield each file that this worker claims, with its rows, which must be taken before the next file.

    Batches are read ahead, also those of the next files, so that the model need not wait for images.
    """
    settings, waiting = extraction.settings, deque[_Waiting]()
    num_images = sum(shard.end - shard.start for shard in shards)
    is_much = settings.streaming or num_images > 2 * settings.num_workers * settings.batch_size
    batches = _batches(store, claims, split, shards, settings.batch_size, waiting)
    outputs = extraction.embedder.encode_stream(split.images, batches, settings.num_workers if is_much else 0)
    for shard, of_shard in itertools.groupby(_tables(outputs, waiting, split, storage), itemgetter(0)):
        if shard is not None:
            yield shard, (table for _, table in of_shard if table is not None)


class _Waiting(NamedTuple):
    """A batch that is encoded.

    Attributes:
        shard: Its file.
        batch: Its names and copied columns.
        is_last: Whether it is the last of its file.
    """

    shard: Shard
    batch: ImageBatch
    is_last: bool


def _batches(
    store: Store, claims: Claims, split: AnySplit, shards: list[Shard], batch_size: int, waiting: deque[_Waiting]
) -> Iterator[list[Any]]:
    """Yield the images of batches of files as they are claimed, and put each batch among those that wait."""
    for number in claims.pieces([shard.name for shard in shards], lambda: set(store.names(FOLDER))):
        shard = shards[number]
        if store.exists(shard.path):  # made since we looked
            claims.give_back(shard.name)
            continue
        for batch, following in itertools.pairwise(itertools.chain(split.read(shard, batch_size), [None])):
            assert batch is not None
            waiting.append(_Waiting(shard, batch, following is None))
            yield batch.images


def _tables(
    outputs: Iterator[list[dict[str, Tensor] | None]], waiting: deque[_Waiting], split: AnySplit, storage: Storage
) -> Iterator[tuple[Shard | None, pyarrow.Table | None]]:
    """Yield the rows of each batch with their file, and nothing of no file after the last of each.

    Raises:
        ValueError: If a file has no image that can be decoded.
    """
    has_rows = False
    for of_batch in outputs:
        shard, batch, is_last = waiting.popleft()
        numbers = [number for number, row in enumerate(of_batch) if row is not None]
        rows = [storage.reduce(row) for row in of_batch if row is not None]
        if rows:
            features, ids = features_of(rows[0], storage, split.kept_features), [batch.ids[each] for each in numbers]
            yield shard, table_of(ids, batch.kept.take(numbers), rows, storage, features)
        has_rows = has_rows or bool(rows)
        if is_last and not has_rows:
            raise ValueError(f"`data` must have images that can be decoded, got none for {shard.name}. Leave it out.")
        if is_last:
            yield None, None
            has_rows = False


def _find_bases(extraction: Extraction, store: Store) -> None:
    """Write the principal components of a choice of images, where they are missing."""
    if store.exists(PCA_FILE):
        return
    settings, split = extraction.settings, next(iter(extraction.splits.values()))
    assert settings.pca is not None
    assert isinstance(split, SourceSplit)  # the settings refuse streams
    chosen = make_generator(0, "principal components")
    numbers = torch.randperm(len(split), generator=chosen)[:PCA_IMAGES].sort().values.tolist()
    batches = [numbers[start : start + settings.batch_size] for start in range(0, len(numbers), settings.batch_size)]
    outputs = itertools.chain.from_iterable(extraction.embedder.encode(split.images, batches, settings.num_workers))
    rows = tqdm(outputs, "principal components", len(numbers), unit=" images", leave=False, disable=None)
    bases = fit_bases(rows, settings.pool, settings.pca)
    with store.writing(PCA_FILE) as path:
        save_bases(path, bases)


def _check_sums(store: Store, done: list[str]) -> None:
    """Refuse files that differ from their checksums; all ranks take part, each reads its share.

    Args:
        store: Folder of the data set.
        done: Files of rows that are there, which all have a checksum.
    """
    rank, count = rank_and_count()
    sums = read_sums(store)
    names = [*done, *sorted(name for name in sums.keys() - done if store.exists(name))]
    damaged = [name for name in names[rank::count] if hash_in(store, name) not in sums.get(name, ())]
    for name in itertools.chain(*of_all_ranks(damaged)):
        raise ValueError(f"{str(store.full_name(name))!r} has another sum than in {SUMS}: it has changed. {AGAIN}")


def _complete(
    extraction: Extraction, store: Store, claims: Claims, num_new: int, seconds: float, *, was_done: bool
) -> Written:
    """Join the checksums of all workers in one file, if no other worker has, and return what there is."""
    shards = extraction.shards()
    with claims.alone("finish"):
        parts = [name for name in store.names() if name.startswith(f"{SUMS}-")]
        role = "completed" if parts or not store.exists(SUMS) else "found" if was_done else "helped"
        written, of_rows = read_sums(store), [shard.path for shard in shards]
        others = sorted({MANIFEST, PCA_FILE, *written} - set(of_rows))
        digests = {}
        for name in (*of_rows, *(name for name in others if store.exists(name))):
            known = written.get(name, set())
            digests[name] = known.pop() if len(known) == 1 else hash_in(store, name)
        if role == "completed" or digests.keys() != written.keys():  # else a file was removed since
            store.write(SUMS, lines_of_sums(digests))
        for name in parts:
            store.remove(name)
        claims.clear()
    rows = Counter[str]()
    for shard in with_rows(store, shards) if extraction.settings.streaming else shards:
        rows[shard.split] += shard.end - shard.start
    return Written(dict(rows), len(shards), store.num_bytes(FOLDER), num_new, seconds, role)
