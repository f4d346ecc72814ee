"""Parquet files, webdataset shards, image folders and data sets of the Hub, all opened through `datasets`."""

from __future__ import annotations

import contextlib
import glob
import itertools
import logging
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from modeling_radio.checks_radio import check_choice, did_you_mean
from modeling_radio.core.errors import FULL_DISK, system_error
from modeling_radio.core.ids import HUB_PREFIX
from modeling_radio.core.imports import is_object_path
from modeling_radio.core.settings import hash_of
from modeling_radio.data.decoding import EncodedImage, content_fingerprint
from modeling_radio.data.image_folder import (
    BUILDERS,
    files_fingerprint,
    find_shards,
    image_files,
    no_images_error,
    pillow_suffixes,
)
from modeling_radio.data.made_images import open_made_images
from modeling_radio.data.settings import IMAGE_SOURCES, DataRecipe, SourceRecipe, is_made


if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, Features, IterableDataset

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"(hub:)?(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
_FILE_OF_HUB = re.compile(r"(?:hf://|https?://huggingface\.co/)datasets/(?P<id>[^/?#]+/[^/?#@]+)")
_URL = re.compile(r"\w+://")
_ADDRESS_OF_FILE = re.compile(r"\w+:/|::")
_ADDRESS_OF_FOLDER = re.compile(r"(?!https?:)\w+://")
"""Web servers do not list their folders."""
_WILD = re.compile(r"[*?\[{]")

BINARY_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes")
"""Usual names of encoded images in files without Hugging Face's type information."""

NUM_FIRST_SAMPLES = 5
"""Number of samples whose files decide which field is the image. As many as `datasets` reads."""

_KEY, _WEIGHT = "__key__", "__weight__"
"""Columns with the name of a row in its file, and with its weight as a text."""

_REQUESTS_AT_ONCE = 16
"""Files whose sizes are asked for at once. Our choice: they wait for each other in stores."""

_ROWS_AT_ONCE = 64
"""Rows of a Parquet file that are in memory. Our choice: some ten megabytes."""

_NAME_IN_SHARD = re.compile(r"((?:.*/)?(?!__)[^./]+)\.([^/]*)")
"""Name of a sample, which its files share, and the field, which tells them apart. Hidden files have other names."""


@contextlib.contextmanager
def in_one_line(complaint: str) -> Generator[None]:
    """Turn errors of `datasets`, with their cause, into one line.

    Args:
        complaint: Beginning of the message, such as "`data` 'shards' cannot be opened".

    Raises:
        ValueError: If `datasets`, the file system or an archive raised something.
        OSError: If the disk of the cache is full.
    """
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (ValueError, OSError, OverflowError, tarfile.TarError, DatasetsError) as error:
        found = system_error(error)
        if found is not None and found.errno in FULL_DISK:  # that of the cache
            raise found from None
        reasons = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        text = " ".join(": ".join(reason for reason in reasons if reason).split()) or type(error).__name__
        raise ValueError(f"{complaint}: {text.rstrip('.')}.") from error


def check_named_file(name: str, source: str) -> None:
    """Refuse a file or an address that a table of strangers names: it would be read, or requested, without notice.

    Args:
        name: The file.
        source: The user's name of the data.

    Raises:
        ValueError: If it does not lie in the folder that the source is or whose files it names.
    """
    folder = _folder_of(source)
    if folder is None or _ADDRESS_OF_FILE.search(name) or not Path(os.path.abspath(name)).is_relative_to(folder):
        raise ValueError(
            f"`data` {source!r} must hold its images, or name files in its folder, got {name!r:.200}, which lies "
            "elsewhere and is not read. Store the images in the table, or give the folder that holds both."
        )


def _folder_of(source: str) -> Path | None:
    """Return the local folder that a source is, or whose files it names; None if there is none."""
    if _ADDRESS_OF_FILE.search(source):
        return None
    start = os.path.expanduser(_WILD.split(source)[0])
    plain = Path(start)
    folder = plain if plain.is_dir() else Path(os.path.dirname(start))
    is_path = plain.exists() or _WILD.search(source) is not None
    return Path(os.path.abspath(folder)) if is_path else None


class PublicName(NamedTuple):
    """Public description of a source.

    Attributes:
        name: Last part of a path or an address, or the id on the Hub with its configuration.
        origin: Its origin, in words.
        hub_id: Its repository on the Hub, or None.
    """

    name: str
    origin: str
    hub_id: str | None = None


def public_name(source: str) -> PublicName:
    """Return the public description of a source of a recipe or of `--data`."""
    if source in IMAGE_SOURCES:
        return PublicName(source, open_made_images(source).origin)
    if is_object_path(source):
        return PublicName(source, "images that a program makes or opens")
    if _URL.match(source):
        address, of_hub = urlsplit(source), _FILE_OF_HUB.match(source)
        name = address.path.rstrip("/").rpartition("/")[2] or "files"
        if of_hub is not None:
            return PublicName(name, f"Hugging Face Hub, {of_hub['id']}", of_hub["id"])
        return PublicName(name, f"file of {address.hostname or address.scheme}")
    path = Path(source).expanduser()
    if path.exists() or (path.suffix in BUILDERS and not source.startswith(HUB_PREFIX)):
        name = os.path.basename(os.path.abspath(path))
        return PublicName(name, f"{'folder' if path.is_dir() else 'file'} {name}")
    name = source.removeprefix(HUB_PREFIX)
    return PublicName(name, f"Hugging Face Hub, {name}", name.partition(":")[0])


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Read a header; `tarfile` itself takes a damaged one for the end of the archive, which is empty."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf.strip(b"\0"):
                raise tarfile.ReadError(f"damaged header ({error})") from error
            raise


def is_image(field: str) -> bool:
    """Return whether files of a field, for example "jpg" or "left.png", are images that Pillow opens."""
    return Path(f"name.{field}").suffix.lower() in pillow_suffixes()


def first_fields(shards: Sequence[str]) -> list[str]:
    """Return the fields of the first samples of the first shard in which a sample can be read.

    Raises:
        ValueError: If there is no such shard.
    """
    damage = ""
    for shard in shards:
        fields: dict[str, None] = {}
        try:
            for _, files in itertools.islice(samples(shard), NUM_FIRST_SAMPLES):
                fields |= dict.fromkeys(field for _, field, _ in files)
        except tarfile.TarError as error:
            damage = damage or f": {shard}: {error}"
        if fields:
            return list(fields)
    raise ValueError(f"no sample can be read from any of its {len(shards)} shards{damage}")


def read_samples(
    shards: Sequence[str], column: str, *, takes_others: bool, weights: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the image of each sample, as `{"image": {"path": ..., "bytes": ...}, "__url__": shard}`.

    Args:
        shards: Paths or addresses.
        column: The field that is the image.
        takes_others: Take the first other image of a sample that has none there. Without any, `bytes` is empty.
        weights: The field that is the sample's weight, a text that comes as `"__weight__"`, empty if it is missing.

    Raises:
        tarfile.TarError: If a shard is damaged; the message names it.
        OSError: If a shard `is_out_of_reach`; the message names it.
    """
    for shard in shards:
        of_shard = samples(shard)
        try:
            for key, files in of_shard:
                name, content, weight = key, b"", ""
                for _, field, file in files:
                    if field == weights:
                        weight = file.read().decode(errors="replace")
                    if field == column or (takes_others and not content and is_image(field)):
                        name, content = f"{key}.{field}", file.read()
                row = {"image": {"path": name, "bytes": content}, "__url__": shard}
                yield row if weights is None else {**row, _WEIGHT: weight}
        except (tarfile.TarError, OSError) as error:
            if is_out_of_reach(error):
                raise ConnectionError(f"{shard}: {error}") from error
            raise tarfile.ReadError(f"{shard}: {error}") from error


def read_rows(shards: Sequence[str], column: str, weights: str | None) -> Iterator[dict[str, Any]]:
    """Yield the image of each row of Parquet files as `read_samples` does, with its number as `"__key__"`.

    Args:
        shards: Paths or addresses.
        column: The column of the images.
        weights: The column of the weights.
    """
    from datasets.utils.file_utils import xopen
    from pyarrow.parquet import ParquetFile

    columns = [column] if weights is None else [column, weights]
    for file in shards:
        number = 0
        with xopen(file, "rb") as content, ParquetFile(content) as table:
            if missing := {*columns} - {*table.schema_arrow.names}:  # `iter_batches` would leave them out
                raise ValueError(f"{file} has no column {min(missing)!r}")
            for group in table.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for values in group.to_pylist():
                    image = values[column]
                    parts = {"path": None, "bytes": image} if isinstance(image, bytes) else image
                    row = {"image": parts, "__url__": file, _KEY: f"{number:09d}"}
                    yield row if weights is None else {**row, _WEIGHT: str(values[weights])}
                    number += 1


def names_of_files(files: Sequence[str]) -> dict[str, str]:
    """Return a name for each path or address: without the folder that holds all, and the query of a signed address."""
    paths = {file: _whole_path(file) for file in files}
    root = posixpath.commonpath([posixpath.dirname(path) for path in paths.values()])
    return {file: posixpath.relpath(path, root) for file, path in paths.items()}


def _whole_path(file: str) -> str:
    """Return the absolute path of a file, at an address with the bucket or host, without a query."""
    address = urlsplit(file)
    if address.scheme in ("http", "https"):
        return f"/{address.hostname}{address.path}"
    _, is_address, path = file.partition("://")
    return f"/{path.lstrip('/')}" if is_address else Path(file).absolute().as_posix()


def is_out_of_reach(error: Exception) -> bool:
    """Return whether an error of reading is one of the disk, the network or the store, and not of what is read.

    The system numbers its errors; those that Arrow raises at damaged files have no number.
    """
    return isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno is not None)


def samples(shard: str) -> Iterator[tuple[str, Iterator[tuple[str, str, IO[bytes]]]]]:
    """Yield the key of each sample and its files, which must be read before the next sample."""
    return itertools.groupby(_files(shard), key=itemgetter(0))


def _files(shard: str) -> Iterator[tuple[str, str, IO[bytes]]]:
    """Yield key, field and content of each file of a sample."""
    from datasets.utils.file_utils import xopen  # reads addresses too, and tries again when a connection breaks

    # Without blocks these read one stream; the file systems of other addresses do not know the word.
    options: dict[str, Any] = {"block_size": 0} if shard.startswith(("http", "hf:")) else {}
    with (
        xopen(shard, "rb", **options) as stream,
        tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive,
    ):
        for member in archive:
            archive.members = []  # pyrefly: ignore[missing-attribute] (which would gather in memory)
            name = _NAME_IN_SHARD.fullmatch(member.name)
            file = archive.extractfile(member) if member.isreg() else None
            if name is not None and file is not None:
                yield name[1], name[2], file


@dataclass(frozen=True)
class ImageColumn:
    """The column of a data set that holds its images.

    Attributes:
        source: The user's name of the data set.
        name: The column.
        is_listed: Whether files beside the table were found by us or `datasets` in a folder, and not named by it.
        weights: The column of the weights; None without.
    """

    source: str
    name: str
    is_listed: bool = False
    weights: str | None = None

    def read(self, row: dict[str, Any], fallback: str) -> EncodedImage:
        """Return the image of a row; `fallback`, for example "row 7", names it where the row itself does not.

        The files of image folders on the Hub that are streamed have addresses and are read at once.

        Raises:
            ValueError: If the row names a file or an address outside the folder of the source.
        """
        value = row[self.name]
        content = value if isinstance(value, bytes) else (value or {}).get("bytes")
        path = None if isinstance(value, bytes) else (value or {}).get("path")
        if content is not None or path is None:
            return EncodedImage(f"{row.get('__url__', self.source)}: {path or fallback}", content or b"")
        if not self.is_listed:
            check_named_file(path, self.source)
        if not _URL.match(path):
            return EncodedImage(path, Path(path))
        import fsspec  # comes with `datasets`, whose addresses of files it reads

        with fsspec.open(path, "rb") as file:
            return EncodedImage(path, file.read())  # pyrefly: ignore[missing-attribute]

    def key(self, row: Mapping[str, Any]) -> str:
        """Return the name of a row of a file that is streamed: the file, and the row's name or number in it."""
        return f"{row['__url__']}/{row[_KEY] if _KEY in row else row[self.name]['path']}"

    def weight(self, row: Mapping[str, Any]) -> Any:
        """Return the weight of a row as it is written there."""
        assert self.weights is not None  # asked for weights only
        return row[self.weights]


class TableRows:
    """The images of a map-style data set by number.

    Args:
        dataset: A data set of `datasets` with random access.
        column: Its image column.
    """

    def __init__(self, dataset: Dataset, column: ImageColumn) -> None:
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> EncodedImage:
        return self.column.read(self.dataset[index], f"row {index}")

    def weights(self) -> list[Any] | None:
        name = self.column.weights
        return None if name is None else list(self.dataset[name])

    def fingerprint(self) -> str:
        """Return the number of rows, the bytes of their images, and a hash of their contents."""
        from pyarrow import compute, types

        column = self.dataset.with_format("arrow")[:][self.column.name]
        if types.is_struct(column.type):
            names = [field.name for field in column.type]
            column = column.flatten()[names.index("bytes")]
        # Arrow knows these lengths without reading the bytes; files beside the table have none.
        num_bytes = [size or 0 for size in compute.call_function("binary_length", [column]).to_pylist()]
        return f"{len(self)} rows, {sum(num_bytes)} bytes, state {content_fingerprint(self.__getitem__, num_bytes)}"


class OpenedSource(NamedTuple):
    """A source and its images.

    Attributes:
        dataset: All of it, with random access or as a stream.
        column: Its image column.
        files: The files of a stream; None where `datasets` reads them, as those of an image folder.
        read: Returns some of these files as a data set.
    """

    dataset: Any
    column: ImageColumn
    files: list[str] | None = None
    read: Callable[[list[str]], IterableDataset] | None = None


def open_table(source: SourceRecipe) -> TableRows:
    """Open a source with random access: `datasets` copies it to its cache on first use.

    Raises:
        ValueError: If it cannot be opened, or has no such split, no image column or no row.
    """
    opened = _open(source, streaming=False)
    if not len(opened.dataset):
        raise ValueError(f"Data source {source.source!r} has no rows.")
    return TableRows(opened.dataset, opened.column)


def open_stream(source: SourceRecipe) -> OpenedSource:
    """Open a source to be read from its beginning to its end.

    Raises:
        ValueError: If it cannot be opened, or has no such split or no image column.
    """
    if is_made(source.source):
        raise ValueError(f"Data source {source.source!r} is made, not read. Leave out `data.streaming`.")
    return _open(source, streaming=True)


def file_sizes(files: Sequence[str]) -> list[int]:
    """Return the numbers of rows of Parquet files, which their ends hold; of other files the bytes, 1 if unknown.

    Args:
        files: Paths or addresses.

    Raises:
        ValueError: If a file cannot be reached.
    """
    with in_one_line("`data.source` has a file that cannot be read"), ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return list(pool.map(_file_size, files))


def _file_size(file: str) -> int:
    from datasets.utils.file_utils import xopen
    from fsspec.core import url_to_fs
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    if Path(urlsplit(file).path).suffix == ".parquet":
        with contextlib.suppress(ArrowInvalid), xopen(file, "rb") as content:  # a damaged one is left out later
            return ParquetFile(content).metadata.num_rows
    system, path = url_to_fs(file)
    return system.size(path) or 1


def stream_fingerprint(data: DataRecipe) -> str:
    """Return a line that changes when the files of streamed sources do, though the sources have the same names.

    For files behind a URL it knows the names only; those of a data set of the Hub hold the commit.
    """
    return "; ".join(_source_fingerprint(source) for source in data.sources())


def _source_fingerprint(source: SourceRecipe) -> str:
    local = _local_files(source.source)
    if local is not None and not _URL.match(source.source):
        return files_fingerprint({path: Path(path) for path in local[1]})
    if local is None:
        import datasets

        builder = datasets.load_dataset_builder(**_load_arguments(source))
        names = sorted(map(str, (builder.config.data_files or {}).get(source.split or "train", [])))
    else:
        names = local[1]
    return f"{len(names)} files, names {hash_of(dict.fromkeys(names))[:8]}"


def is_image_folder(source: str) -> bool:
    """Return whether a source is a local folder that is not one of shards.

    Raises:
        ValueError: If it is a folder that may be either.
    """
    folder = Path(source).expanduser()
    return folder.is_dir() and not find_shards(folder)


def expand_braces(pattern: str) -> list[str]:
    """Return the expansions of `{a,b}` and `{000..012}`, as in a shell."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds:
        width = len(bounds[1])
        choices = [f"{number:0{width}}" for number in range(int(bounds[1]), int(bounds[2]) + 1)]
    else:
        choices = match[1].split(",")
    expanded = (expand_braces(pattern[: match.start()] + choice + pattern[match.end() :]) for choice in choices)
    return list(itertools.chain.from_iterable(expanded))


def expand_files(pattern: str) -> list[str]:
    """Return the files of a pattern with braces and stars; addresses stay as they are.

    Raises:
        ValueError: If a part of it matches no file.
    """
    patterns = expand_braces(pattern)
    if _URL.match(pattern):
        return patterns
    files = [sorted(glob.glob(str(Path(part).expanduser()), recursive=True)) for part in patterns]
    missing = [part for part, found in zip(patterns, files, strict=True) if not found]
    if missing:
        raise ValueError(f"Data source {pattern!r}: no file matches {missing[0]!r}.")
    return list(itertools.chain.from_iterable(files))


def is_listed(table: Dataset | IterableDataset) -> bool:
    """Return whether `datasets` found the files of a fresh table in an image folder, here or on the Hub."""
    return table.builder_name == "imagefolder"


def as_patterns(files: Iterable[str]) -> list[str]:
    """Return files as patterns for `datasets`, each of which matches that file alone, even `a[1].png`."""
    return [name if _URL.match(name) else glob.escape(name) for name in files]


def _open(source: SourceRecipe, *, streaming: bool) -> OpenedSource:
    arguments = _load_arguments(source)  # before the import, whose failure would hide a wrong name
    try:
        import datasets  # not needed for the demo or a folder, and not everywhere installed
    except ImportError as error:
        raise ValueError(f"Data source {source.source!r} needs a package. Run `pip install 'datasets>=5'`.") from error
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    with in_one_line(f"Data source {source.source!r} cannot be opened"):
        builder = datasets.load_dataset_builder(**arguments)
    if isinstance(builder, WebDataset):
        return _open_shards(source, builder, streaming=streaming)
    with in_one_line(f"Data source {source.source!r} cannot be opened"):
        if not streaming:
            builder.download_and_prepare()
        open_split = builder.as_streaming_dataset if streaming else builder.as_dataset
        dataset: Any = open_split(source.split or "train")
    features = dataset.features
    if features is None:
        raise ValueError(f"Data source {source.source!r} does not say which columns it has. Convert it to Parquet.")
    column, weights = _find_column(features, source), _find_weights(features, source)
    if streaming and isinstance(builder, Parquet):
        files = (builder.config.data_files or {})[source.split or "train"]
        return _stream(source, read_rows, list(files), {"column": column, "weights": weights}, has_keys=True)
    if streaming and weights is not None:
        raise ValueError(f"`data.weights` needs .tar or .parquet files with streaming, got {source.source!r}.")
    if isinstance(features[column], datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))  # our workers decode
    kept = [name for name in (column, "__url__", weights) if name in features]
    return OpenedSource(dataset.select_columns(kept), ImageColumn(source.source, column, is_listed(dataset), weights))


def _open_shards(source: SourceRecipe, builder: DatasetBuilder, *, streaming: bool) -> OpenedSource:
    """Open webdataset shards, which `datasets` has found; its own reader would stop at a damaged sidecar file."""
    from datasets import Dataset, Image, Value

    files, split = builder.config.data_files or {}, source.split or "train"
    if split not in files:
        raise ValueError(f"Data source {source.source!r} has no split {split!r}. Splits: {list(files)}.")
    shards = list(files[split])
    with in_one_line(f"Data source {source.source!r} cannot be opened"):
        fields = {field: Image() if is_image(field) else Value("binary") for field in first_fields(shards)}
    weights = _find_weights(fields, source)
    choice: dict[str, Any] = {"column": _find_column(fields, source), "takes_others": source.column is None}
    choice |= {} if weights is None else {"weights": weights}
    if streaming:
        return _stream(source, read_samples, shards, choice)
    arguments: dict[str, Any] = {"features": _row_features(weights), "gen_kwargs": {"shards": shards, **choice}}
    contents = hash_of({"cache": builder.cache_dir, **choice})  # a folder for each state of the files
    with in_one_line(f"Data source {source.source!r} cannot be opened"):
        dataset = Dataset.from_generator(read_samples, **arguments, fingerprint=contents)
    return OpenedSource(dataset, ImageColumn(source.source, "image", weights=weights and _WEIGHT))


def _stream(
    source: SourceRecipe,
    read: Callable[..., Iterator[dict[str, Any]]],
    files: list[str],
    choice: dict[str, Any],
    *,
    has_keys: bool = False,
) -> OpenedSource:
    """Return files that a function of this module reads in order, divided by file.

    Args:
        source: The source.
        read: The function.
        files: Its argument `shards`.
        choice: Its further arguments.
        has_keys: Whether rows have a column with their names.
    """
    from datasets import IterableDataset

    weights = choice.get("weights")
    arguments: dict[str, Any] = {"features": _row_features(weights, has_keys=has_keys)}

    def read_some(some: list[str]) -> IterableDataset:
        with in_one_line(f"Data source {source.source!r} cannot be opened"):
            return IterableDataset.from_generator(read, **arguments, gen_kwargs={"shards": some, **choice})

    column = ImageColumn(source.source, "image", weights=weights and _WEIGHT)
    return OpenedSource(read_some(files), column, files, read_some)


def _row_features(weights: str | None, *, has_keys: bool = False) -> Features:
    from datasets import Features, Value

    text = Value("string")
    image = {"path": text, "bytes": Value("binary")}
    own = [*([_KEY] if has_keys else []), *([_WEIGHT] if weights is not None else [])]
    return Features({"image": image, "__url__": text, **dict.fromkeys(own, text)})


def _find_weights(features: Mapping[str, Any], source: SourceRecipe) -> str | None:
    """Return the column of the weights; None if the source has no such.

    Raises:
        ValueError: If it is missing.
    """
    name = source.weights
    if name is not None:
        check_choice("data.weights", name, list(features))
    return name


def _load_arguments(source: SourceRecipe) -> dict[str, Any]:
    """Return the arguments with which `datasets` opens a source.

    Raises:
        ValueError: If a pattern matches no file, or the text is no kind of source, or it is a folder of several.
    """
    local = _local_files(source.source)
    if local is not None:
        builder, files = local
        if source.split not in (None, "train"):
            raise ValueError(f"Data source {source.source!r} has no split {source.split!r}: files have ['train'] only.")
        return {"path": builder, "data_files": {"train": as_patterns(files)}}
    hub_id = _HUB_ID.fullmatch(source.source)
    if hub_id is None:
        demo = " nor ".join(map(repr, IMAGE_SOURCES))
        raise ValueError(
            f"Data source {source.source!r} is neither {demo}, nor a folder that exists, a pattern of .parquet or .tar "
            "files, or a data set of the Hub such as 'org/name'."
        )
    return {"path": hub_id["name"], "name": hub_id["config"]}


def list_shards(source: str) -> dict[str, str]:
    """Return the `.parquet` or the `.tar` files of a source and the state of each, in order, without opening them.

    Args:
        source: A file, a pattern or a folder of them, on this machine or at an address.

    Returns:
        By path or address, the size in bytes, and what the file system has of time, version or hash.

    Raises:
        ValueError: If there are no files.
    """
    if not _URL.match(source):
        found = _local_files(source)
        if found is None or found[0] not in BUILDERS.values():
            raise ValueError(f"`data` must be {' or '.join(BUILDERS)} files to be streamed, got {source!r}.")
        facts = {name: os.stat(name) for name in found[1]}
        return {name: f"{fact.st_size} {fact.st_mtime_ns}" for name, fact in facts.items()}
    shards: dict[str, str] = {}
    try:
        for system, pattern in _systems(expand_braces(source)):
            patterns = [pattern] if Path(pattern).suffix in BUILDERS else _folder_patterns(pattern)
            found = next(filter(None, (system.glob(each, detail=True) for each in patterns)), None)
            if not found:
                raise FileNotFoundError(f"no file matches {pattern!r}")
            shards |= {system.unstrip_protocol(name): _state(fact) for name, fact in sorted(found.items())}
    except Exception as error:  # file systems raise anything: a missing package, no key, no network
        raise ValueError(f"`data` {source!r} cannot be listed: {error}.") from error
    return shards


def _systems(addresses: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """Yield the file system of each address, and the path in it."""
    from fsspec.core import url_to_fs

    listed = set[str]()
    for address in addresses:
        system, path = url_to_fs(address)
        parent = path.rpartition("/")[0]
        if len(addresses) > 1 and parent not in listed:
            listed.add(parent)
            with contextlib.suppress(OSError):
                system.ls(parent)  # one request for all of them, which the system remembers
        yield system, path


def _state(fact: Mapping[str, Any]) -> str:
    """Return the size of a file, and what else tells that it has changed."""
    version = [str(fact[key]) for key in ("ETag", "etag", "md5Hash", "blob_id", "mtime", "created") if key in fact]
    return " ".join([str(fact["size"]), *version[:1]])


def shard_files(source: str) -> list[str] | None:
    """Return the files, or addresses and their patterns, of shards that a source names or an address holds.

    None for a folder on this machine, or anything else.

    Raises:
        ValueError: If there are no files.
    """
    if Path(source).suffix in BUILDERS and not source.startswith(HUB_PREFIX):
        return expand_files(source)
    return list(list_shards(source)) if _ADDRESS_OF_FOLDER.match(source) else None


def _folder_patterns(folder: str) -> list[str]:
    """Return the patterns that find the files of a folder, in this order: .tar files have tables beside them."""
    return [f"{folder.rstrip('/')}/**/*{suffix}" for suffix in reversed(BUILDERS)]


def _local_files(source: str) -> tuple[str, list[str]] | None:
    """Return the builder and the files of a folder, file, pattern or URL; None for anything else."""
    files = shard_files(source)
    if files is not None:
        return BUILDERS[Path(files[0]).suffix], files
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return None
    shards = find_shards(folder)
    if shards:
        return BUILDERS[shards[0].suffix], [str(path) for path in shards]
    return "imagefolder", _streamed_images(folder)


def _streamed_images(folder: Path) -> list[str]:
    """Return the images of a folder that `datasets` streams; it skips types that it does not know."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    found = image_files(folder)
    files = [str(path) for path in found if path.suffix.lower() in ImageFolder.EXTENSIONS]
    if not files:
        raise no_images_error(folder, len(found))
    if len(files) < len(found):
        left_out = sorted({path.suffix.lower() for path in found} - set(ImageFolder.EXTENSIONS))
        logger.warning(
            "%s: %d of %d images are skipped, because files of type %s cannot be streamed: remove `data.streaming`",
            folder,
            len(found) - len(files),
            len(found),
            ", ".join(left_out),
        )
    return files


def _find_column(features: Mapping[str, Any], source: SourceRecipe) -> str:
    """Return the column of the images: the given one, the first of type Image, or one with a usual name."""
    import datasets

    if source.column is not None and source.column in features:
        return source.column
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    images += [name for name in BINARY_IMAGE_COLUMNS if name in features]
    if source.column is None and images:
        return images[0]
    wanted = "no image column" if source.column is None else f"no column {source.column!r}"
    hint = "" if source.column is None else did_you_mean(source.column, features)
    raise ValueError(
        f"Data source {source.source!r} has {wanted}.{hint} Columns: {list(features)}. Give one as `data.column`."
    )
