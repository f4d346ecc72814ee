"""Images of .tar or Parquet files that are read in order, here or at addresses: a file of features for each of them."""

from __future__ import annotations

import itertools
import logging
import posixpath
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from modeling_radio.checks_radio import check_choice
from modeling_radio.core.errors import without_secrets
from modeling_radio.core.settings import hash_of
from modeling_radio.data.decoding import EncodedImage, UnusableImageError, decode_rgb, to_tensor
from modeling_radio.data.labeled.folders import TRAIN
from modeling_radio.data.labeled.tables import IMAGE_COLUMNS, choose_column
from modeling_radio.data.sources import (
    ImageColumn,
    first_fields,
    in_one_line,
    is_image,
    list_shards,
    names_of_files,
    samples,
)
from modeling_radio.extraction.settings import SourceSettings
from modeling_radio.extraction.shards import Shard, plan_streamed
from modeling_radio.extraction.source import ImageBatch, kept_columns


if TYPE_CHECKING:
    from datasets import Features

logger = logging.getLogger(__name__)


class DecodedOrNone:
    """Pixels of encoded images; None for one that cannot be decoded, which the log names."""

    def __getitem__(self, image: EncodedImage) -> Tensor | None:
        try:
            return to_tensor(decode_rgb(image, smallest_px=1))
        except UnusableImageError as error:
            logger.warning("left out %s: %s", image.name, error)
            return None


class StreamedSplit:
    """Images of files that are read in order; nothing is held of them but the names of the files.

    A name of an image is that of its file, without the folder that holds all, the suffix and the query of a signed
    address, a slash, and its key in a .tar file, or its number in a Parquet file.

    Args:
        settings: Settings of the images.

    Attributes:
        name: "train".
        kept_features: Types of the copied columns.
        images: Pixels of the images of a batch.

    Raises:
        ValueError: If there are no such files, or they lack a column that the settings name.
    """

    def __init__(self, settings: SourceSettings) -> None:
        self.name, self.source, self.images = TRAIN, settings.data, DecodedOrNone()
        with in_one_line(f"`data` {self.source!r} cannot be opened"):
            self._sizes = list_shards(self.source)
            self._files = list(self._sizes)
            self.is_tar = self._files[0].endswith(".tar")
            columns = self._fields_of_samples() if self.is_tar else self._columns_of_table()
        purpose = "the extraction"
        self._image = choose_column("image", settings.image_column, IMAGE_COLUMNS, list(columns), self.source, purpose)
        self._takes_others = settings.image_column is None
        names = kept_columns(settings, columns, self._image)
        if settings.id_column is not None:
            check_choice("id_column", settings.id_column, [name for name in columns if name != self._image])
        self._id, self.kept_features = settings.id_column, columns.__class__({name: columns[name] for name in names})
        self._names = names_of_files(self._files)

    def shards(self, images_of_shard: int) -> list[Shard]:
        """Return a file for each of those that are read, however many images these have."""
        return plan_streamed(self.name, len(self._files))

    def state(self) -> dict[str, Any]:
        """Return the number of files, and hashes of their names and of their sizes, as plain data."""
        names = {self._names[file]: size for file, size in self._sizes.items()}
        return {
            "files": len(names),
            "state": hash_of(names)[:16],
            "names": hash_of({"files": list(names)})[:16],
        }

    def read(self, shard: Shard, batch_size: int) -> Iterator[ImageBatch]:
        """Yield the images of a file in batches.

        Raises:
            ValueError: If it cannot be read to its end, has no image, or the same name twice.
        """
        import pyarrow

        file, names = self._files[shard.start], set[str]()
        rows = self._samples(file) if self.is_tar else self._rows(file, batch_size)
        kept = list(self.kept_features)
        with in_one_line(f"`data` {file!r} cannot be read to its end"):
            while found := list(itertools.islice(rows, batch_size)):
                ids = [name for name, _, _ in found]
                if len(set(ids)) < len(ids) or not names.isdisjoint(ids):
                    raise ValueError("it has the same name twice")
                names.update(ids)
                columns = {name: [values[name] for _, _, values in found] for name in kept}
                table = pyarrow.table(columns, schema=self.kept_features.arrow_schema)
                yield ImageBatch(ids, table, [image for _, image, _ in found])
            if not names:
                raise ValueError("it has no image")

    def _prefix(self, file: str) -> str:
        return posixpath.splitext(self._names[file])[0]

    def _fields_of_samples(self) -> Features:
        from datasets import Features, Image, Value

        fields = first_fields(self._files)
        return Features({field: Image() if is_image(field) else Value("string") for field in fields})

    def _columns_of_table(self) -> Features:
        from datasets import Features
        from pyarrow.parquet import read_schema

        with _open(self._files[0]) as file:
            return Features.from_arrow_schema(read_schema(file))

    def _samples(self, file: str) -> Iterator[tuple[str, EncodedImage, Mapping[str, Any]]]:
        """Yield name, image and copied fields of each sample of a .tar file."""
        for key, parts in samples(file):
            image, values = None, dict.fromkeys(self.kept_features)
            for _, field, part in parts:
                is_other = self._takes_others and image is None and is_image(field)
                if field == self._image or is_other:
                    image = EncodedImage(f"{without_secrets(file)}: {key}.{field}", part.read())
                elif field in values or field == self._id:
                    values[field] = part.read().decode(errors="replace")
            if image is not None:
                name = key if self._id is None else str(values.pop(self._id, None))
                yield f"{self._prefix(file)}/{name}" if self._id is None else name, image, values

    def _rows(self, file: str, batch_size: int) -> Iterator[tuple[str, EncodedImage, Mapping[str, Any]]]:
        """Yield name, image and copied columns of each row of a Parquet file."""
        from pyarrow.parquet import ParquetFile

        columns = dict.fromkeys([self._image, *self.kept_features, *([self._id] if self._id else [])])
        image, prefix, number = ImageColumn(self.source, self._image), self._prefix(file), 0
        with _open(file) as content, ParquetFile(content) as table:
            for group in table.iter_batches(batch_size, columns=list(columns)):
                for row in group.to_pylist():
                    name = f"{prefix}/{number:09d}" if self._id is None else str(row[self._id])
                    yield name, image.read(row, f"{without_secrets(file)}: row {number}"), row
                    number += 1


def _open(file: str) -> Any:
    import fsspec

    return fsspec.open(file, "rb")
