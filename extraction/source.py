"""Images to extract from, by split, with a name and copied columns for each."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from modeling_radio.checks_radio import check_choice
from modeling_radio.core.errors import first_few
from modeling_radio.core.settings import hash_of
from modeling_radio.data.labeled.folders import (
    DEPTH_FOLDERS,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    SplitNames,
    Tables,
    holds,
    read_depth_folder,
    read_mask_folder,
)
from modeling_radio.data.labeled.rows import DecodedImages, choose_rows, path_within, table_state
from modeling_radio.data.labeled.tables import (
    IMAGE_COLUMNS,
    choose_column,
    image_paths,
    open_class_folders,
    open_tables,
    readable_tables,
)
from modeling_radio.evaluation.data_tables import COLUMNS, open_data
from modeling_radio.evaluation.features import batches_between
from modeling_radio.evaluation.settings import DataOptions, is_named_set
from modeling_radio.extraction.settings import SourceSettings
from modeling_radio.extraction.shards import Shard, plan_shards


if TYPE_CHECKING:
    from datasets import Dataset, Features
    from pyarrow import Table

SPLITS: SplitNames = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Possible names of the splits; a source without splits is all train."""
KEY = "__key__"
"""Column of webdataset shards."""
OPENED_SIZE_PX = 256
"""Our choice of the size at which a function opens images; the processor of a checkpoint may shrink them."""
_IMAGE, _ID = "image", "__id__"


class ImageBatch(NamedTuple):
    """Images that are encoded together.

    Attributes:
        ids: Their names.
        kept: The columns that are copied.
        images: Items for which the `images` of their split return pixels.
    """

    ids: list[str]
    kept: Table
    images: list[Any]


class SourceSplit:
    """Images of one split.

    Args:
        name: Name of the split.
        table: Images as `image`, names as `__id__`, and the columns that are copied.
        source: The data as the user named it.

    Attributes:
        images: Images that are decoded on access.
        fingerprint: Hash of the images and their order.
    """

    def __init__(self, name: str, table: Dataset, source: str) -> None:
        self.name, self.source = name, source
        self._kept = cast("Dataset", table.remove_columns([_IMAGE, _ID]))
        self._ids = cast("Dataset", table.select_columns([_ID]))
        self.images = DecodedImages(table, source, self.where)
        self.fingerprint = table_state(cast("Dataset", table.select_columns([_IMAGE])), [_IMAGE], source)

    def __len__(self) -> int:
        return len(self.images)

    def shards(self, images_of_shard: int) -> list[Shard]:
        """Return the files that are made of these images."""
        return plan_shards({self.name: len(self)}, images_of_shard)

    def read(self, shard: Shard, batch_size: int) -> Iterator[ImageBatch]:
        """Yield the images of a file in batches."""
        for numbers in batches_between(shard.start, shard.end, batch_size):
            first, end = numbers[0], numbers[-1] + 1
            yield ImageBatch(self.ids(first, end), self.kept(first, end), numbers)

    def state(self) -> dict[str, Any]:
        """Return the number of images, and hashes of the images and of their names, as plain data."""
        return {
            "number": len(self),
            "state": hash_of({"images": self.fingerprint})[:16],
            "names": hash_of({"ids": self.ids()})[:16],
        }

    @property
    def kept_features(self) -> Features:
        """Types of the copied columns."""
        return self._kept.features

    def ids(self, start: int = 0, end: int | None = None) -> list[str]:
        """Return the names of the images from `start` to `end`."""
        return self._ids[start : len(self) if end is None else end][_ID]

    def kept(self, start: int, end: int) -> Table:
        """Return the copied columns of the images from `start` to `end`."""
        import pyarrow

        if not self._kept.column_names:  # of which datasets cannot gather rows that are not contiguous
            return pyarrow.table({})
        return cast(Any, self._kept.with_format("arrow"))[start:end]

    def where(self, index: int) -> str:
        """Return the name of an image for messages."""
        return f"{self.name} image {self.ids(index, index + 1)[0]!r}"


def open_source(settings: SourceSettings) -> dict[str, SourceSplit]:
    """Open the images that settings name, by split.

    Raises:
        ValueError: If they cannot be opened, lack a column or split that the settings name, or have a name twice.
    """
    source = str(settings.data)
    names: SplitNames = SPLITS if settings.splits is None else {name: (name,) for name in settings.splits}
    if is_named_set(source):
        tables = _tables_of_set(source)
    else:
        tables = open_tables(source, lambda path: _read_folder(path, names), names)
    missing = [name for name in settings.splits or () if name not in tables]
    if missing:
        check_choice("splits", missing[0], list(tables))
    existing = next(iter(tables.values())).column_names
    image = choose_column("image", settings.image_column, IMAGE_COLUMNS, existing, source, "the extraction")
    kept = kept_columns(settings, next(iter(tables.values())).features, image)
    splits = {}
    for name, table in tables.items():
        table = _with_ids(cast("Dataset", table.with_format(None)), image, settings, name)
        table = cast("Dataset", table.select_columns([image, _ID, *kept]))
        table = table if image == _IMAGE else table.rename_column(image, _IMAGE)
        table = readable_tables({name: table})[name]
        if settings.max_images is not None:
            table = choose_rows(table, settings.max_images, 0, name)
        splits[name] = SourceSplit(name, table, source)
    return splits


def _read_folder(path: Path, names: SplitNames) -> Tables:
    if not path.is_dir():
        raise ValueError(f"`data` must be a folder, .parquet or .tar files or a Hub id, got {str(path)!r}.")
    if "train" in names and holds(path, IMAGE_FOLDERS, names):
        for targets, read in ((MASK_FOLDERS, read_mask_folder), (DEPTH_FOLDERS, read_depth_folder)):
            if holds(path, targets, names):
                return read(path, names)
    return open_class_folders(path, names)


def kept_columns(settings: SourceSettings, features: Mapping[str, Any], image: str) -> list[str]:
    """Return the columns that are copied, by default that of the classes; columns of images are refused."""
    from datasets import ClassLabel

    if settings.keep is None:
        classes = [name for name in COLUMNS["label"] if isinstance(features.get(name), ClassLabel)]
        return [name for name in classes if features[name].num_classes > 1][:1]
    for name in settings.keep:
        check_choice("keep", name, [each for each in features if each != image])
        if hasattr(features[name], "decode_example"):
            raise ValueError(f"`keep` must name columns without images, got {name!r}. Leave it out.")
    return list(dict.fromkeys(settings.keep))


def _with_ids(table: Dataset, image: str, settings: SourceSettings, split: str) -> Dataset:
    """Return a table with a unique name for each row."""
    if settings.id_column is not None:
        check_choice("id_column", settings.id_column, [name for name in table.column_names if name != image])
        ids = list(map(str, table.select_columns([settings.id_column])[:][settings.id_column]))
        repeated = [name for name, count in Counter(ids).items() if count > 1]
        if repeated:
            raise ValueError(
                f"`id_column` must name each image once, got {settings.id_column!r} with {first_few(repeated, 3)} more "
                "than once. Name another column, or leave it out."
            )
    else:
        ids = _usual_ids(table, image, str(settings.data), split)
    return cast("Dataset", table.add_column(_ID, cast(Any, ids)))  # pyrefly: ignore[missing-argument]


def _usual_ids(table: Dataset, image: str, source: str, split: str) -> list[str]:
    """Return paths, keys of webdataset shards, or, where these are missing or not unique, numbers."""
    paths = image_paths(table, image)
    found: list[str] = []
    if all(path is not None for path in paths):
        folder = Path(source).expanduser()
        found = [path_within(Path(str(path)), folder) for path in paths]
    elif KEY in table.column_names:
        found = list(map(str, table.select_columns([KEY])[:][KEY]))
    if found and len(set(found)) == len(found):
        return found
    return [f"{split}-{number:09d}" for number in range(len(table))]


def _tables_of_set(source: str) -> Tables:
    """Return the images of known classes of a set that a function opens, such as the demo's, as encoded PNG files."""
    from datasets import ClassLabel, Dataset, Features, Image

    def png(image: Tensor) -> dict[str, Any]:
        content = io.BytesIO()
        to_pil_image(image).save(content, "png")
        return {"bytes": content.getvalue(), "path": None}

    part = open_data(source, DataOptions(), size_px=OPENED_SIZE_PX).part("labels")
    features = Features({_IMAGE: Image(), "label": ClassLabel(names=list(part.class_names))})
    tables = {}
    for name, examples in (("train", part.train), ("test", part.test)):
        if examples is None:
            continue
        assert examples.labels is not None  # the part's kind says so
        rows = [png(examples.images[number]) for number in range(len(examples))]
        tables[name] = Dataset.from_dict({_IMAGE: rows, "label": examples.labels.tolist()}, features=features)
    return tables
