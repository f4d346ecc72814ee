"""Labeled images for one task: opened in any form, split, and read with their labels, as tables or as a stream."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import tqdm

from modeling_radio.core.ranks import on_first_rank
from modeling_radio.core.seeds import derive_seed
from modeling_radio.data.arrays import ARRAY_SUFFIXES
from modeling_radio.data.decoding import SkippedImages
from modeling_radio.data.labeled.coco import holds_coco, read_coco
from modeling_radio.data.labeled.folders import (
    SPLIT_NAMES,
    TRAIN,
    VALIDATION,
    SplitNames,
    Tables,
    read_class_names,
    read_depth_folder,
    read_mask_folder,
)
from modeling_radio.data.labeled.labels import (
    LabelReader,
    check_numbers,
    find_problem_type,
    number_classes,
    number_known_classes,
    read_objects,
    stated_categories,
    stated_names,
)
from modeling_radio.data.labeled.tables import (
    IMAGE_COLUMNS,
    choose_column,
    damaged_rows,
    image_paths,
    open_class_folders,
    open_streams,
    open_tables,
    readable_tables,
    split_folders,
    with_columns,
)
from modeling_radio.data.settings import LabeledData
from modeling_radio.data.sources import ImageColumn, is_listed
from modeling_radio.heads_radio import ProblemType


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

T = TypeVar("T")


@dataclass(frozen=True)
class Targets:
    """Kind of the labels of a task, which decides how images are opened, split and augmented.

    Attributes:
        columns: Usual names of the column of the labels; the first that exists is taken.
        read_folder: Function of a path and the names of splits that returns tables by split, with the class names if
            the layout states them.
        are_of_images: Whether a label belongs to a whole image: a class, several, or a number. Only these can be
            streamed.
        have_boxes: Whether objects have boxes.
        have_outlines: Whether objects have outlines too.
        have_classes: Whether labels can be classes.
        allow_crops: Whether training may crop images.
    """

    columns: tuple[str, ...]
    read_folder: Callable[[Path, SplitNames], tuple[Tables, tuple[str, ...]]]
    are_of_images: bool = False
    have_boxes: bool = False
    have_outlines: bool = False
    have_classes: bool = True
    allow_crops: bool = True


def _read_class_folders(path: Path, names: SplitNames) -> tuple[Tables, tuple[str, ...]]:
    if holds_coco(path):
        raise ValueError(
            f"{path} has COCO annotations, which are for the tasks object-detection and instance-segmentation; labels "
            "of whole images need a sub-folder of images for each class."
        )
    return open_class_folders(path, names), ()


LABELS = Targets(("label", "labels", "class", "fine_label", "cls"), _read_class_folders, are_of_images=True)
MASKS = Targets(
    ("mask", "annotation", "label", "labels", "segmentation", "semantic_segmentation"),
    lambda path, names: (read_mask_folder(path, names), read_class_names(path) or ()),
)
BOXES = Targets(("objects", "annotations"), partial(read_coco, with_masks=False), have_boxes=True)
OUTLINES = replace(BOXES, read_folder=partial(read_coco, with_masks=True), have_outlines=True)
# A crop zooms, and a zoom changes the apparent distance.
DEPTH = Targets(
    ("depth", "depth_map"),
    lambda path, names: (read_depth_folder(path, names), ()),
    have_classes=False,
    allow_crops=False,
)


SHUFFLED_TOGETHER = 1000  # our choice: encoded images that wait in memory, some 100 MB; files are shuffled as wholes
FILES_AT_ONCE = 1  # `datasets` mixes ten by default, with threads that take 5 s to end in each pass


def open_array_folders(path: Path, names: SplitNames) -> Tables:
    """Return tables by split of a folder with a sub-folder of TIFF or `.npy` files for each class.

    Raises:
        ValueError: If there are none.
    """
    from datasets import ClassLabel, Dataset, Features, Image

    files = {
        split: [each for each in sorted(folder.glob("*/*")) if each.suffix.lower() in ARRAY_SUFFIXES]
        for split, folder in split_folders(path, names).items()
    }
    classes = sorted({file.parent.name for file in itertools.chain.from_iterable(files.values())})
    if not classes:
        raise ValueError(f"{str(path)!r} must have a sub-folder of {', '.join(ARRAY_SUFFIXES)} files for each class.")
    features = Features({"image": Image(), "label": ClassLabel(names=classes)})
    return {
        split: Dataset.from_dict(
            {"image": list(map(str, found)), "label": [classes.index(file.parent.name) for file in found]}, features
        )
        for split, found in files.items()
        if found
    }


def with_paths(table: Dataset) -> Dataset:
    """Return a table whose column `image` has the paths of files, which are no pictures that `datasets` reads.

    Raises:
        ValueError: If an image is not a file of its own.
    """
    paths: list[Any] = image_paths(table, "image")
    if None in paths:
        raise ValueError("`num_channels` needs a folder of files: images that lie in tables are RGB. Leave it out.")
    others = cast("Dataset", table.remove_columns("image"))
    return cast("Dataset", others.add_column("image", cast(Any, paths)))  # pyrefly: ignore[missing-argument]


@dataclass(frozen=True)
class LabeledStream:
    """Endless passes through the training images of a source, in another order each time.

    The images of a reader depend on the seed, its rank and its worker alone, so that a resumed run repeats them.

    Attributes:
        images: A column of encoded images, and one of labels.
        column: Reader of the images.
        labels: Reader of the labels.
        seed: Seed of the order.
        rank: Rank of this process.
        num_ranks: Processes that share the images.
    """

    images: IterableDataset
    column: ImageColumn
    labels: LabelReader
    seed: int
    rank: int = 0
    num_ranks: int = 1

    @property
    def num_readers(self) -> int:
        """Largest number of workers of a rank: one for each of its files."""
        return self._of_rank(self.images).num_shards

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of this rank, and in a worker those of this worker.

        `image` is a Pillow image, `target` the label for a task. Images that cannot be decoded are left out, and named
        in the log.

        Raises:
            ValueError: If a label is missing or no known class, or no image can be opened.
        """
        skipped = SkippedImages()
        for number_of_pass in itertools.count():
            seed = derive_seed(self.seed, "pass", number_of_pass) % 2**32
            shuffled = self.images.shuffle(seed, buffer_size=SHUFFLED_TOGETHER, max_buffer_input_shards=FILES_AT_ONCE)
            num_read = 0
            for index, row in enumerate(self._of_rank(shuffled)):
                image = self.column.read(row, f"training image {index} of pass {number_of_pass}")
                rgb = skipped.decode(image, smallest_px=1)
                if rgb is None:
                    continue
                num_read += 1
                yield {"image": rgb, "target": self.labels.read(row, image.name)}
            if num_read == 0:
                raise ValueError(
                    f"None of the training images of {self.column.source!r} can be opened; the log names them."
                )

    def _of_rank(self, images: IterableDataset) -> IterableDataset:
        """Return the files of this rank, or every n-th image where files cannot be shared out evenly."""
        from datasets.distributed import split_dataset_by_node

        return split_dataset_by_node(images, self.rank, self.num_ranks)


def collect(
    images: IterableDataset, column: ImageColumn, labels: LabelReader, name: str = "validation image"
) -> Dataset:
    """Return validation images, which are read repeatedly, as a table in memory: encoded, with their labels read.

    Args:
        images: A column of encoded images, and one of labels.
        column: Reader of the images.
        labels: Reader of the labels.
        name: Name of an image in messages.

    Returns:
        Columns `image` and `target`.

    Raises:
        ValueError: If a label is missing or no known class, or no image can be opened.
    """
    from datasets import Dataset, Features, Image, List, Value

    kept, skipped = {"image": [], "target": []}, SkippedImages()
    for index, row in enumerate(tqdm(images, desc=f"{name}s", unit="image")):
        image = column.read(row, f"{name} {index}")
        if skipped.decode(image, smallest_px=1) is not None:
            is_file = isinstance(image.content, Path)
            stored = {"bytes": None, "path": str(image.content)} if is_file else {"bytes": image.content, "path": None}
            kept["image"].append(stored)
            kept["target"].append(labels.read(row, image.name))
    if not kept["image"]:
        raise ValueError(f"None of the {name}s of {column.source!r} can be opened; the log names them.")
    target = {
        "regression": Value("float64"),
        "multi_label_classification": List(Value("int64")),
        "single_label_classification": Value("int64"),
    }[labels.problem_type]
    return Dataset.from_dict(kept, features=Features({"image": Image(), "target": target}))


@dataclass(frozen=True)
class LabeledImages:
    """Two splits of one source.

    Attributes:
        train: Columns `image` and `target`.
        validation: The same columns.
        class_names: In the order of their ids; empty if the source names none.
        remark: A line about the source and its splits.
        problem_type: Kind of the labels of whole images; None for other targets.
        stream: Streamed training images; `train` is empty then.
        source_names: Names of the ids in masks and objects where they differ from `class_names`; else empty.
        measured: Name of an image of `validation` in messages.
        is_whole: Whether `validation` are all images of a source that has no split to measure.
    """

    train: Dataset
    validation: Dataset
    class_names: tuple[str, ...]
    remark: str
    problem_type: ProblemType | None = None
    stream: LabeledStream | None = None
    source_names: tuple[str, ...] = ()
    measured: str = "validation image"
    is_whole: bool = False

    def splits(self) -> list[tuple[str, Dataset]]:
        """Return the splits that have images, each with the name of an image in messages."""
        both = (("training image", self.train), (self.measured, self.validation))
        return [(name, rows) for name, rows in both if len(rows)]


def load_images(settings: LabeledData, targets: Targets) -> LabeledImages:
    """Open the source that the settings name.

    Args:
        settings: Settings of the run.
        targets: Kind of the labels.

    Raises:
        ValueError: If the source does not exist, lacks the layout or a column that the labels need, has a wrong label,
            or two classes of one name.
    """
    if settings.streaming:
        return _load_streams(settings, targets)
    tables, class_names = _open(settings, targets)
    class_names = settings.classes or class_names
    _require_distinct(class_names)
    if TRAIN not in tables:
        raise ValueError(f"{settings.data!r} has no split 'train'; it has {', '.join(tables)}.")
    image, target = _choose_columns(settings, targets, tables[TRAIN].column_names)
    columns = {image: "image", target: "target"}
    tables = {split: with_columns(table, columns) for split, table in tables.items()}
    if settings.num_channels is not None:
        tables = {split: with_paths(table) for split, table in tables.items()}
    tables = readable_tables(tables, on_first_rank(lambda: damaged_rows(tables)) if settings.skip_damaged else {})
    problem_type: ProblemType | None = None
    if targets.are_of_images:
        problem_type = find_problem_type(tables[TRAIN])
        if problem_type == "regression":
            _refuse_classes_of_numbers(settings, target)
            check_numbers(tables, target)
            class_names = ()
        else:
            tables, class_names = number_classes(tables, target, settings.classes)
    train, validation, how = _split(settings, targets, tables, problem_type)
    remark = f"{settings.data}: {len(train)} training and {len(validation)} validation images ({how})"
    return LabeledImages(train, validation, class_names, remark, problem_type)


def load_measured(
    settings: LabeledData, targets: Targets, known: tuple[str, ...], split: str | None = None
) -> LabeledImages:
    """Open labeled images to measure a model on.

    Args:
        settings: Source and columns.
        targets: Kind of the labels.
        known: The model's classes, to which those of the source are matched by name, or by id where it has no names.
            Empty takes the source's own.
        split: Split to measure; by default the source's own one for validation or testing, else all images.

    Returns:
        The images as `validation`; `train` is empty.

    Raises:
        ValueError: As `load_images`; or if there is no such split, or a class that the model does not know.
    """
    names = SPLIT_NAMES if split is None else {**SPLIT_NAMES, VALIDATION: (split,)}
    if settings.streaming:
        streams = open_streams(settings.data, names)
        images = _collect_measured(settings, known, _chosen_split(streams, settings, split))
        return replace(images, is_whole=split is None and VALIDATION not in streams)
    tables, stated = _open(settings, targets, names)
    images = _measured_table(settings, targets, known, _chosen_split(tables, settings, split), stated)
    return replace(images, is_whole=split is None and VALIDATION not in tables)


def _measured_table(
    settings: LabeledData, targets: Targets, known: tuple[str, ...], table: Dataset, stated: tuple[str, ...]
) -> LabeledImages:
    """Read the labels of a table; the layout of its source has `stated` the names of classes."""
    image, target = _choose_columns(settings, targets, table.column_names)
    table = with_columns(table, {image: "image", target: "target"})
    table = readable_tables({"test": table if settings.num_channels is None else with_paths(table)})["test"]
    if not targets.are_of_images:
        names = stated or (stated_categories(table) or () if targets.have_boxes else ())
        return _measured(settings, table, known, source_names=names)
    problem_type = find_problem_type(table)
    if problem_type == "regression":
        check_numbers({"test": table}, target)
    elif known:
        table = number_known_classes(table, target, known)
    else:
        tables, known = number_classes({TRAIN: table}, target, None)
        table = tables[TRAIN]
    return _measured(settings, table, known, problem_type)


def _measured(
    settings: LabeledData,
    table: Dataset,
    class_names: tuple[str, ...],
    problem_type: ProblemType | None = None,
    source_names: tuple[str, ...] = (),
) -> LabeledImages:
    remark = f"{settings.data}: {len(table)} images measured"
    empty = cast("Dataset", table.select([]))
    return LabeledImages(
        empty, table, class_names, remark, problem_type, source_names=source_names, measured="test image"
    )


def _chosen_split(splits: Mapping[str, T], settings: LabeledData, asked: str | None) -> T:
    """Return the split to measure, of those of a source under our names."""
    is_train = asked in SPLIT_NAMES[TRAIN] or (asked is None and VALIDATION not in splits)
    found = splits.get(TRAIN if is_train else VALIDATION)
    if found is None:
        raise ValueError(f"{settings.data!r} has no split {asked or TRAIN!r}; it has {', '.join(splits)}.")
    return found


def _collect_measured(settings: LabeledData, known: tuple[str, ...], stream: IterableDataset) -> LabeledImages:
    """Read a streamed split into memory."""
    image, target = _choose_columns(settings, LABELS, list(stream.features or ()))
    stream = _encoded(stream, image, target)
    if known and find_problem_type(stream, target) != "regression":
        labels = LabelReader(find_problem_type(stream, target), known, target, stated_names(stream, target) or ())
    else:
        labels = _label_reader(settings, stream, target)
    table = collect(stream, ImageColumn(settings.data, image, is_listed(stream)), labels, "test image")
    return _measured(settings, table, labels.names, labels.problem_type)


def _split(
    settings: LabeledData, targets: Targets, tables: Tables, problem_type: ProblemType | None
) -> tuple[Dataset, Dataset, str]:
    """Return training and validation images, and where the split is from."""
    table = tables[TRAIN]
    if VALIDATION in tables:
        return table, tables[VALIDATION], "its own validation split"
    classes: Sequence[Sequence[Any]] = [()] * len(table)
    if problem_type == "multi_label_classification":
        classes = table["target"][:]
    elif problem_type == "single_label_classification":
        classes = [[label] for label in table["target"][:]]
    elif targets.have_boxes:
        classes = [read_objects(row, f"image {number}", "category") for number, row in enumerate(table["target"])]
    seed = derive_seed(settings.seed, "validation split")
    try:
        train, validation = split_images(classes, settings.validation_share, seed)
    except ValueError as error:
        raise ValueError(f"{settings.data!r} has {error}") from error
    how = f"a seeded split, {settings.validation_share:.0%}"
    if problem_type not in (None, "regression") or targets.have_boxes:
        how += " of each class and at least one image"
    return cast("Dataset", table.select(train)), cast("Dataset", table.select(validation)), how


def _load_streams(settings: LabeledData, targets: Targets) -> LabeledImages:
    """Open the training images as a stream, and read the validation images into memory."""
    streams = open_streams(settings.data)
    if TRAIN not in streams or VALIDATION not in streams:
        raise ValueError(
            f"`streaming` needs splits for training and validation; {settings.data!r} has {', '.join(streams)}."
        )
    features = streams[TRAIN].features
    image, target = _choose_columns(settings, targets, list(features or ()))
    images = {split: _encoded(streams[split], image, target) for split in (TRAIN, VALIDATION)}
    labels, state = _label_reader(settings, images[TRAIN], target), PartialState()
    column = ImageColumn(settings.data, image, is_listed(images[TRAIN]))
    seed = derive_seed(settings.seed, "stream")
    labeled = LabeledStream(images[TRAIN], column, labels, seed, state.process_index, state.num_processes)
    validation = collect(images[VALIDATION], column, labels)
    remark = f"{settings.data}: a stream of training images and {len(validation)} validation images (its own split)"
    empty = cast("Dataset", validation.select([]))
    return LabeledImages(empty, validation, labels.names, remark, labels.problem_type, labeled)


def _encoded(stream: IterableDataset, image: str, target: str) -> IterableDataset:
    """Return a stream of two columns, whose images are encoded."""
    from datasets import Image

    assert stream.features is not None
    if isinstance(stream.features[image], Image):
        stream = stream.cast_column(image, Image(decode=False))
    return stream.select_columns([image, target])


def _label_reader(settings: LabeledData, images: IterableDataset, column: str) -> LabelReader:
    problem_type = find_problem_type(images, column)
    if problem_type == "regression":
        _refuse_classes_of_numbers(settings, column)
        return LabelReader(problem_type, (), column)
    names = settings.classes or stated_names(images, column)
    if names is None:
        raise ValueError(
            f"Column {column!r} of {settings.data!r} does not name its classes, and `streaming` cannot read ahead: "
            "give `classes`, their names in the order of their ids."
        )
    _require_distinct(names)
    if len(names) < 2 and problem_type == "single_label_classification":
        raise ValueError(f"`classes` must be at least two names, got {names!r}.")
    return LabelReader(problem_type, names, column)


def _refuse_classes_of_numbers(settings: LabeledData, column: str) -> None:
    if settings.classes is not None:
        raise ValueError(
            f"`classes` names classes, but column {column!r} of {settings.data!r} has floats, which are measured "
            "numbers: leave `classes` out, or store the ids of classes as integers."
        )


def _require_distinct(class_names: tuple[str, ...]) -> None:
    repeated = sorted({name for name in class_names if class_names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"Several classes have the name {', '.join(map(repr, repeated))}: give `classes`, a name of its own for "
            "each in the order of their ids."
        )


def _open(settings: LabeledData, targets: Targets, names: SplitNames = SPLIT_NAMES) -> tuple[Tables, tuple[str, ...]]:
    """Return the tables by split, and the class names if the layout states them."""
    class_names: tuple[str, ...] = ()

    def read_folder(path: Path) -> Tables:
        nonlocal class_names
        if settings.num_channels is not None and targets.are_of_images and path.is_dir():
            return open_array_folders(path, names)
        if not path.is_dir() and not targets.have_boxes:  # those may be in one file
            raise ValueError(
                f"{settings.data!r} must be a folder, a .parquet or .tar file or a Hub id for {settings.task}."
            )
        tables, class_names = targets.read_folder(path, names)
        return tables

    return open_tables(settings.data, read_folder, names), class_names


def _choose_columns(settings: LabeledData, targets: Targets, existing: Sequence[str]) -> tuple[str, str]:
    """Return the columns of images and targets."""
    data, task = settings.data, settings.task
    image = choose_column("image", settings.image_column, IMAGE_COLUMNS, existing, data, task)
    return image, choose_column("target", settings.target_column, targets.columns, existing, data, task)


def split_images(classes: Sequence[Sequence[Hashable]], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of training and of validation images, both ascending.

    Every class gets its share of validation images, at least one, and keeps at least one for training: a class with one
    image is not in the validation images. Images without a class are shared out as if they were a class.

    Args:
        classes: Classes of each image, `(num_images,)`.
        share: Share of the images to hold out, in (0, 1).
        seed: Seed of the choice.

    Raises:
        ValueError: If no class has two images.

    References:
        Sechidis et al., 2011, On the stratification of multi-label data: the rarest class is served first.
    """
    images: dict[Hashable, list[int]] = {}
    own = [list(dict.fromkeys(several)) or [None] for several in classes]
    for index in torch.randperm(len(own), generator=torch.Generator().manual_seed(seed)).tolist():
        for name in own[index]:
            images.setdefault(name, []).append(index)
    in_training = {name: len(found) for name, found in images.items()}
    held_out: set[int] = set()
    for name, found in sorted(images.items(), key=lambda item: len(item[1])):
        wanted = max(round(share * len(found)), 1)
        for index in found:
            if len(found) - in_training[name] >= wanted:
                break
            if index not in held_out and all(in_training[each] > 1 for each in own[index]):
                held_out.add(index)
                for each in own[index]:
                    in_training[each] -= 1
    if not held_out:
        raise ValueError(f"{len(own)} images, no two of one class: none is left for validation.")
    return [index for index in range(len(own)) if index not in held_out], sorted(held_out)
