"""Anybody's labeled images as evaluation data: folders, Parquet, webdataset, saved data sets and the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torchvision.models import EfficientNet_B0_Weights

from core.settings import Settings
from core.timing import ProgressBar
from model_cards.results import Source
from training.data.labeled.folders import (
    DEPTH_FOLDERS,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    SPLIT_NAMES,
    TRAIN,
    VALIDATION,
    Tables,
    holds,
    read_class_names,
    read_depth_folder,
    read_mask_folder,
)
from training.data.labeled.labels import find_problem_type, number_classes
from training.data.labeled.tables import (
    IMAGE_COLUMNS,
    choose_column,
    image_paths,
    open_class_folders,
    open_tables,
    readable_tables,
    with_columns,
)
from training.data.sources import public_name
from training.evaluation.data import KINDS, Kind, Masks, Part, Rows, check_kind
from training.evaluation.metrics.dense import IGNORE_INDEX


if TYPE_CHECKING:
    from datasets import Dataset


IMAGENET = "imagenet-1k"
MAX_UNLABELED = 256
"""Our choice: on so many images models are compared with themselves at other sizes, and adaptors with teachers."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "label": ("label", "labels", "class", "fine_label", "cls"),
    "mask": ("mask", "annotation", "segmentation", "semantic_segmentation"),
    "depth": ("depth", "depth_map"),
    "caption": ("caption", "captions", "text", "txt", "sentences"),
}
"""Names that are tried where none is given; what is not there is not measured. Groups have no usual name."""
KIND_OF = {"label": "labels", "mask": "masks", "depth": "depth", "caption": "captions"}


class DataOptions(Settings):
    """How a source is read.

    Attributes:
        image_column: Column of the images; the first of the usual names where it is left out, as of all columns.
        label_column: Column of the classes.
        mask_column: Column of the masks of class ids.
        depth_column: Column of the depth maps.
        caption_column: Column of the texts, one or a list for each image.
        group_column: Column that tells which images are of one source, such as a video: intervals resample these, and
            without a train split none is compared with another of its source.
        train_split: Split that probes learn from and queries are compared with; train where it is left out.
        test_split: Split that is measured; the first of validation, valid, val, dev and test.
        class_names: File with the name of a class on each line, in the order of their ids; or "imagenet-1k" for its
            thousand in words, where folders have codes.
        reduce_labels: In masks, 0 does not count and all other classes become one less, as in ADE20k.
        depth_scale: Units per meter of stored depth; 1000 of whole numbers and 1 of others.
        max_images: Measure a seeded choice of so many images of each split.
    """

    image_column: str | None = None
    label_column: str | None = None
    mask_column: str | None = None
    depth_column: str | None = None
    caption_column: str | None = None
    group_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    class_names: str | None = None
    reduce_labels: bool = False
    depth_scale: float | None = None
    max_images: int | None = None


class TableData:
    """Images of anybody, with whatever is known of them.

    Folders have classes as sub-folders, `images/` beside `masks/` or `depth/` with files of equal names, or a
    `metadata.csv` as `datasets` reads it; each with folders such as `train/` and `test/` above, or without.

    Args:
        source: See `open_tables`.
        options: Columns, splits and units.
        seed: Of the choice of images where not all are measured.

    Raises:
        ValueError: If the source cannot be opened, or has no column or split that was asked for; those that there are
            are named.
    """

    def __init__(self, source: str, options: DataOptions | None = None, *, seed: int = 0) -> None:
        self.source, self.options, self.seed = source, options or DataOptions(), seed
        tables, self._mask_classes = self._open()
        roles = self._roles(next(iter(tables.values())))
        tables = readable_tables({split: with_columns(table, roles) for split, table in tables.items()})
        tables, self._label_names = self._number_labels(tables, roles)
        self.roles = {role for role in roles.values() if role != "target"} | ({"label"} if self._label_names else set())
        self.test = Rows(self, tables[VALIDATION] if VALIDATION in tables else tables[TRAIN], "test")
        self.train = Rows(self, tables[TRAIN], "train") if VALIDATION in tables and TRAIN in tables else None

    @property
    def name(self) -> str:
        """The last part of the source, such as the folder's name."""
        return public_name(self.source).name

    def kinds(self) -> frozenset[Kind]:
        """Return what can be measured."""
        known = [kind for role, kind in KIND_OF.items() if role in self.roles]
        return frozenset(kind for kind in KINDS if kind in ("images", "photographs", *known))

    def part(self, kind: Kind) -> Part:
        """Return the images for tasks of one kind.

        Raises:
            ValueError: If they lack what the kind needs.
        """
        check_kind(self.source, kind, self.kinds())
        if kind in ("images", "photographs"):
            return Part(self.name, self.test.chosen(MAX_UNLABELED).examples())
        names = {"labels": self._label_names, "masks": self.mask_names if kind == "masks" else ()}.get(kind, ())
        return Part(
            self.name, self.test.examples(kind), None if self.train is None else self.train.examples(kind), names
        )

    @cached_property
    def mask_names(self) -> tuple[str, ...]:
        """The classes of the masks; where the folder has no `classes.txt`, numbers up to the largest in any mask."""
        if self._mask_classes:
            return self._mask_classes
        splits = [split for split in (self.train, self.test) if split is not None]
        masks = [Masks(split, None) for split in splits]
        largest = -1
        for each in masks:
            for index in ProgressBar(range(len(each)), desc="classes of masks", leave=False, disable=None):
                ids = each[index]
                largest = max([largest, *ids[ids != IGNORE_INDEX].unique().tolist()])
        return tuple(f"class {number}" for number in range(largest + 1))

    def sources(self) -> list[Source]:
        """Return where the images come from."""
        counts = f"{len(self.test)} images measured" + (f", {len(self.train)} to learn from" if self.train else "")
        name, origin, hub_id = public_name(self.source)
        return [Source(name, "evaluation", "see its origin", origin, counts, hub_id)]

    def remarks(self, neighbors: int) -> list[str]:
        """Return what was measured, and how it was divided; see `EvaluationData.remarks`."""
        if self.train is None:
            others = "those of other sources" if "group" in self.roles else "the others"
            return [f"{self.name}: {len(self.test)} images without a split; each is compared with {others}."]
        return [f"{self.name}: {len(self.test)} images measured, {len(self.train)} to learn from or compare with."]

    def split_names(self) -> dict[str, Sequence[str]]:
        """Return what each split may be called."""
        asked = {TRAIN: self.options.train_split, VALIDATION: self.options.test_split}
        return {split: names if asked[split] is None else (str(asked[split]),) for split, names in SPLIT_NAMES.items()}

    def _open(self) -> tuple[Tables, tuple[str, ...]]:
        names, class_names = self.split_names(), ()

        def read_folder(path: Path) -> Tables:
            nonlocal class_names
            if not path.is_dir():
                raise ValueError(f"`data` must be a folder, .parquet or .tar files or a Hub id, got {self.source!r}.")
            targets = [folders for folders in (MASK_FOLDERS, DEPTH_FOLDERS) if holds(path, folders, names)]
            if not targets or not holds(path, IMAGE_FOLDERS, names):
                return open_class_folders(path, names)
            class_names = read_class_names(path) or ()
            readers = {MASK_FOLDERS: read_mask_folder, DEPTH_FOLDERS: read_depth_folder}
            return _joined([readers[folders](path, names) for folders in targets])

        tables = open_tables(self.source, read_folder, names)
        asked = self.options.test_split
        if asked is not None and VALIDATION not in tables:
            raise ValueError(f"`test_split` must be a split of {self.source!r}, got {asked!r}.")
        if len(tables) > 1 and VALIDATION not in tables:
            raise ValueError(f"`test_split` must be one of the splits {', '.join(tables)}, got none.")
        if len(tables) == 1:
            return {TRAIN: next(iter(tables.values()))}, class_names
        return {split: tables[split] for split in (TRAIN, VALIDATION) if split in tables}, class_names

    def _roles(self, table: Dataset) -> dict[str, str]:
        """Return which columns become `image`, `target` (the class), `mask`, `depth`, `caption` and `group`."""
        from datasets import Image

        existing = table.column_names
        purpose = "the evaluation"
        image = choose_column("image", self.options.image_column, IMAGE_COLUMNS, existing, self.source, purpose)
        roles = {image: "image"}
        given = {role: getattr(self.options, f"{role}_column") for role in (*COLUMNS, "group")}
        for role, name in given.items():
            candidates = [column for column in COLUMNS.get(role, ()) if column not in roles]
            if name is None and not any(column in existing for column in candidates):
                continue
            column = choose_column(role, name, candidates, existing, self.source, purpose)
            if column in roles:
                raise ValueError(
                    f"`{role}_column` must be a column of its own, got {column!r}, which is `{roles[column]}_column`."
                )
            is_mask = role == "label" and isinstance(table.features[column], Image)
            roles[column] = "mask" if is_mask else role
        return {column: "target" if role == "label" else role for column, role in roles.items()}

    def _number_labels(self, tables: Tables, roles: Mapping[str, str]) -> tuple[Tables, tuple[str, ...]]:
        """Return tables whose labels are class indices, and the classes; none where images have no or one class."""
        column = next((name for name, role in roles.items() if role == "target"), None)
        if column is None:
            return tables, ()
        first = next(iter(tables.values()))
        problem = find_problem_type(first)
        if problem == "single_label_classification" and len(set(first["target"][:])) > 1:
            return self._named(*number_classes({TRAIN: first, **tables}, column, None))
        if self.options.label_column is not None:
            raise ValueError(
                f"`label_column` must hold one of several classes for each image, got {column!r} with "
                f"{'one class' if problem == 'single_label_classification' else problem.replace('_', ' ')}."
            )
        return tables, ()

    def _named(self, tables: Tables, names: tuple[str, ...]) -> tuple[Tables, tuple[str, ...]]:
        """Return the tables, and the names of the classes that the options give."""
        asked = self.options.class_names
        if asked is None:
            return tables, names
        given = imagenet_class_names() if asked == IMAGENET else _read_lines(Path(asked))
        if len(given) != len(names):
            raise ValueError(f"`class_names` must be {len(names)} names, one for each class, got {len(given)}.")
        return tables, tuple(given)


def _joined(tables: Sequence[Tables]) -> Tables:
    """Return masks and depth maps of the same images in one table for each split; those without both are left out."""
    if len(tables) == 1:
        return tables[0]
    joined: Tables = {}
    for split in tables[0].keys() & tables[1].keys():
        first, second = (each[split] for each in tables)
        places = {path: row for row, path in enumerate(image_paths(second, "image"))}
        paths = image_paths(first, "image")
        rows = [row for row, path in enumerate(paths) if path in places]
        first = cast("Dataset", first.select(rows))
        depth = cast("Dataset", second.select([places[paths[row]] for row in rows]))["depth"][:]
        joined[split] = cast("Dataset", first.add_column("depth", list(depth)))  # pyrefly: ignore[missing-argument]
    return joined


def imagenet_class_names() -> list[str]:
    """Return the names of the 1,000 ImageNet classes, in the order of every classifier and of the folders' codes."""
    return EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`class_names` must be a text file or {IMAGENET!r}, got {str(path)!r}: {error}.") from error
