"""A whole extraction: missing rows are encoded and written, by every rank its share, until all are there."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from modeling_radio.core.files import hash_file, write_text
from modeling_radio.core.ranks import of_all_ranks, on_first_rank, rank_and_count, wait_for_ranks
from modeling_radio.core.seeds import make_generator
from modeling_radio.core.settings import hash_of
from modeling_radio.training.data.sources import public_name
from modeling_radio.training.evaluation.features import batches_between
from modeling_radio.training.extraction.columns import (
    PCA_FILE,
    Storage,
    features_of,
    fit_bases,
    load_bases,
    save_bases,
    table_of,
)
from modeling_radio.training.extraction.embedder import Embedder
from modeling_radio.training.extraction.settings import ExtractionSettings
from modeling_radio.training.extraction.shards import (
    AGAIN,
    SUMS,
    Shard,
    begin,
    missing_shards,
    plan_shards,
    read_sums,
    write_shard,
)
from modeling_radio.training.extraction.source import SourceSplit, image_state, open_source


if TYPE_CHECKING:
    import pyarrow

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
    splits: Mapping[str, SourceSplit]

    @property
    def shards(self) -> list[Shard]:
        """All files."""
        lengths = {name: len(split) for name, split in self.splits.items()}
        return plan_shards(lengths, self.settings.images_of_shard)

    def facts(self) -> dict[str, Any]:
        """Return everything that decides the rows: another run with the same facts writes the same rows."""
        name, _, hub_id = public_name(str(self.settings.data))
        return {
            "settings": self.settings.of_rows() | {"adaptors": sorted(self.embedder.wanted.adaptors)},
            "source": {"name": name, "hub_id": hub_id},
            "model": {"weights and processor": hash_of({"model": self.embedder.model.fingerprint()})[:16]},
            "images": {name: image_state(split) for name, split in self.splits.items()},
        }

    def encode(self, split: SourceSplit, batches: list[list[int]]) -> Iterator[list[dict[str, Tensor]]]:
        """Yield the model's outputs for batches of images of a split."""
        return self.embedder.encode(split.images, batches, self.settings.num_workers)


@dataclass(frozen=True)
class Written:
    """Result of an extraction.

    Attributes:
        num_rows: Rows of the data set.
        num_files: Files of these rows.
        num_bytes: Size of these files.
        num_new: Images that this run encoded, on all ranks.
        seconds: Time of this run.
    """

    num_rows: int
    num_files: int
    num_bytes: int
    num_new: int
    seconds: float

    def __str__(self) -> str:
        speed = f"{self.num_new} encoded now, {self.num_new / self.seconds:.1f} images/s"
        files = "1 file" if self.num_files == 1 else f"{self.num_files} files"
        how = speed if self.num_new else "all were there"
        return f"{self.num_rows} images in {files}, {self.num_bytes / 1e6:.1f} MB ({how})"


def open_extraction(settings: ExtractionSettings) -> Extraction:
    """Open model and images; joins the other processes where a launcher started several.

    Raises:
        ValueError: If model or images do not open, or lack an adaptor or column that the settings name.
    """
    data = Path(str(settings.data)).expanduser()
    if data.is_dir() and settings.output.resolve().is_relative_to(data.resolve()):
        raise ValueError(
            f"`output` must lie outside `data`, where it would be read as data, got {str(settings.output)!r}."
        )
    embedder = Embedder(
        settings.checkpoint,
        "features" if settings.dense else "summary",
        adaptors=settings.adaptors,
        size=settings.size,
        precision=settings.precision,
    )
    _ = embedder.model  # a model that does not open is reported first
    return Extraction(settings, embedder, open_source(settings))


def extract(extraction: Extraction) -> Written:
    """Write the missing rows, this rank its share; return when all ranks are done.

    Files are the same for any number of ranks and interruptions. Several machines need a folder that all of them see.

    Raises:
        ValueError: If the folder belongs to another extraction, an image cannot be decoded, or an output not be stored.
        WriteError: If writing fails, for example on a full disk.
    """
    settings, output, shards = extraction.settings, extraction.settings.output, extraction.shards
    facts = extraction.facts()
    if len({hash_of(each) for each in of_all_ranks(facts)}) > 1:
        raise ValueError("`data` and `checkpoint` must be the same on every rank, got different ones.")
    on_first_rank(lambda: begin(output, facts))
    bases = {}
    if settings.pca is not None:
        on_first_rank(lambda: _find_bases(extraction))
        bases = load_bases(output / PCA_FILE)
    storage = Storage(settings.dtype, settings.layout == "nested", settings.pool, bases)
    rank, count = rank_and_count()
    missing = on_first_rank(lambda: missing_shards(output, shards))
    _check_sums(output, [shard for shard in shards if shard not in missing])
    mine, started = [Shard(*shard) for shard in missing][rank::count], time.perf_counter()
    for shard, tables in _tables(extraction, storage, mine):
        write_shard(output / shard.path, tables, output / f"{SUMS}-{rank}")
    wait_for_ranks()
    seconds = time.perf_counter() - started
    num_bytes = on_first_rank(lambda: _finish(output, shards))
    num_rows, num_new = (sum(shard.end - shard.start for shard in each) for each in (shards, missing))
    return Written(num_rows, len(shards), num_bytes, num_new, seconds)


def _tables(
    extraction: Extraction, storage: Storage, shards: list[Shard]
) -> Iterator[tuple[Shard, Iterator[pyarrow.Table]]]:
    """Yield each file with its rows, which must be taken before the next file."""
    total = sum(shard.end - shard.start for shard in shards)
    # disable=None: tqdm hides itself where stderr is no terminal.
    with tqdm(total=total, desc="features", unit=" images", disable=None) as progress:
        for split in extraction.splits.values():
            of_split = [shard for shard in shards if shard.split == split.name]
            batches = {shard: batches_between(*shard[1:3], extraction.settings.batch_size) for shard in of_split}
            outputs = extraction.encode(split, list(itertools.chain(*batches.values())))
            for shard in of_split:
                yield shard, _tables_of_shard(split, batches[shard], outputs, storage, progress)


def _tables_of_shard(
    split: SourceSplit,
    batches: list[list[int]],
    outputs: Iterator[list[dict[str, Tensor]]],
    storage: Storage,
    progress: tqdm,
) -> Iterator[pyarrow.Table]:
    for batch in batches:
        rows = [storage.reduce(row) for row in next(outputs)]
        features = features_of(rows[0], storage, split.kept_features)
        first, end = batch[0], batch[-1] + 1
        yield table_of(split.ids(first, end), split.kept(first, end), rows, storage, features)
        progress.update(len(batch))


def _find_bases(extraction: Extraction) -> None:
    """Write the principal components of a choice of images, where they are missing."""
    settings, path = extraction.settings, extraction.settings.output / PCA_FILE
    if path.exists():
        return
    assert settings.pca is not None
    split = next(iter(extraction.splits.values()))
    chosen = make_generator(settings.random_seed, "principal components")
    numbers = torch.randperm(len(split), generator=chosen)[:PCA_IMAGES].sort().values.tolist()
    batches = [numbers[start : start + settings.batch_size] for start in range(0, len(numbers), settings.batch_size)]
    outputs = itertools.chain.from_iterable(extraction.encode(split, batches))
    rows = tqdm(outputs, "principal components", len(numbers), unit=" images", leave=False, disable=None)
    save_bases(path, fit_bases(rows, settings.pool, settings.pca))


def _check_sums(output: Path, shards: list[Shard]) -> None:
    """Refuse files that differ from their checksums; all ranks take part, each reads its share."""
    rank, count = rank_and_count()
    sums = read_sums(output)
    own = [shard.path for shard in shards[rank::count]]
    damaged = [name for name in own if hash_file(output / name) not in sums.get(name, ())]
    for name in itertools.chain(*of_all_ranks(damaged)):
        raise ValueError(f"{str(output / name)!r} has another sum than in {SUMS}: it has changed. {AGAIN}")


def _finish(output: Path, shards: list[Shard]) -> int:
    """Check that all files are there, join the checksums of all ranks in one file, and return the files' size."""
    missing = missing_shards(output, shards)
    if missing:
        raise ValueError(
            f"`output` must be a folder that all machines see: {missing[0].path}, which another rank wrote, is not in "
            f"{str(output)!r}."
        )
    written = read_sums(output)
    lines = []
    for name in (shard.path for shard in shards):
        known = written.get(name, set())
        lines.append(f"{known.pop() if len(known) == 1 else hash_file(output / name)}  {name}\n")
    write_text(output / SUMS, "".join(lines))
    for path in output.glob(f"{SUMS}-*"):
        path.unlink()
    return sum((output / shard.path).stat().st_size for shard in shards)
