"""Where labeled images come from: a folder, Parquet files, a saved data set or a Hub id, with their two splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from accelerate import PartialState

from foundation.seeds import derive_seed
from modeling_radio.heads_radio import ProblemType
from training.data.labeled.coco import holds_coco, read_coco
from training.data.labeled.labels import (
    LabelReader,
    check_numbers,
    find_problem_type,
    number_classes,
    stated_names,
)
from training.data.labeled.layouts import (
    TRAIN,
    VALIDATION,
    Tables,
    read_class_names,
    read_depth_folder,
    read_mask_folder,
)
from training.data.labeled.opening import (
    IMAGE_COLUMNS,
    choose_column,
    open_class_folders,
    open_streams,
    open_tables,
    readable_tables,
    with_columns,
)
from training.data.sources import ImageColumn, is_listed
from training.finetuning.data.streams import LabeledStream, collect
from training.finetuning.settings import BOX_TASKS, LABEL_TASKS, FinetuneSettings


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


TARGET_COLUMNS = {
    **dict.fromkeys(LABEL_TASKS, ("label", "labels", "class", "fine_label", "cls")),
    "semantic-segmentation": ("mask", "annotation", "label", "labels", "segmentation", "semantic_segmentation"),
    "object-detection": ("objects", "annotations"),
    "instance-segmentation": ("objects", "annotations"),
    "depth-estimation": ("depth", "depth_map"),
}
"""Names that are tried where none is given; the first that exists counts."""


@dataclass(frozen=True)
class LabeledImages:
    """Two splits of one source.

    Attributes:
        train: Columns `image` and `target`.
        validation: The same columns.
        class_names: In the order of their ids; empty if the source names none.
        remark: One line for people: what the source is and how it was split.
        problem_type: What the labels of image classification are; None for other tasks.
        stream: The training images if they are streamed; `train` is empty then.
    """

    train: Dataset
    validation: Dataset
    class_names: tuple[str, ...]
    remark: str
    problem_type: ProblemType | None = None
    stream: LabeledStream | None = None


def load_images(settings: FinetuneSettings) -> LabeledImages:
    """Open the source that the settings name.

    Raises:
        ValueError: If nothing is there, it is not laid out as the task needs, a column is missing, a label is wrong, or
            two classes have one name.
    """
    if settings.streaming:
        return _load_streams(settings)
    tables, class_names = _open(settings)
    class_names = settings.classes or class_names
    _require_distinct(class_names)
    if TRAIN not in tables:
        raise ValueError(f"{settings.data!r} has no split 'train'; it has {', '.join(tables)}.")
    columns = _choose_columns(settings, tables[TRAIN].column_names)
    tables = readable_tables({split: with_columns(table, columns) for split, table in tables.items()})
    problem_type = None
    if settings.task in LABEL_TASKS:
        column = next(name for name, role in columns.items() if role == "target")
        tables, class_names, problem_type = _read_labels(tables, settings, column)
    train = tables[TRAIN]
    if VALIDATION in tables:
        validation, how = tables[VALIDATION], "its own validation split"
    else:
        train, validation = _split(train, settings)
        how = f"a seeded split of {settings.validation_share:.0%}"
    remark = f"{settings.data}: {len(train)} training and {len(validation)} validation images ({how})"
    return LabeledImages(train, validation, class_names, remark, problem_type)


def _load_streams(settings: FinetuneSettings) -> LabeledImages:
    """Open the training images as a stream, and read the validation images into memory."""
    streams = open_streams(settings.data)
    missing = next((split for split in (TRAIN, VALIDATION) if split not in streams), None)
    if missing is not None:
        raise ValueError(
            f"`streaming` needs splits for training and validation; {settings.data!r} has {', '.join(streams)}."
        )
    roles = _choose_columns(settings, list(streams[TRAIN].features or ()))
    names = {role: name for name, role in roles.items()}
    image_column, column = names["image"], names["target"]
    images = {split: _encoded(streams[split], image_column, column) for split in (TRAIN, VALIDATION)}
    labels, state = _label_reader(settings, images[TRAIN], column), PartialState()
    seed = derive_seed(settings.seed, "stream")
    ranks = (state.process_index, state.num_processes)
    stream = LabeledStream(images[TRAIN], _column(settings, images[TRAIN], image_column), labels, seed, *ranks)
    validation = collect(images[VALIDATION], stream.column, labels)
    remark = f"{settings.data}: a stream of training images and {len(validation)} validation images (its own split)"
    empty = cast("Dataset", validation.select([]))
    return LabeledImages(empty, validation, labels.names, remark, labels.problem_type, stream)


def _column(settings: FinetuneSettings, stream: IterableDataset, name: str) -> ImageColumn:
    return ImageColumn(settings.data, name, is_listed(stream))


def _encoded(stream: IterableDataset, image_column: str, column: str) -> IterableDataset:
    """Return two columns of a stream, images as they are encoded."""
    from datasets import Image

    assert stream.features is not None
    if isinstance(stream.features[image_column], Image):
        stream = stream.cast_column(image_column, Image(decode=False))
    return stream.select_columns([image_column, column])


def _label_reader(settings: FinetuneSettings, images: IterableDataset, column: str) -> LabelReader:
    problem_type = find_problem_type(images, column)
    if problem_type == "regression":
        _refuse_classes_of_numbers(settings, column)
        return LabelReader(problem_type, (), column)
    names = settings.classes or stated_names(images, column)
    if names is None:
        raise ValueError(
            f"Column {column!r} of {settings.data!r} does not say which classes there are, and `streaming` cannot look "
            "before: give `classes`, their names in the order of their ids."
        )
    _require_distinct(names)
    if len(names) < 2 and problem_type == "single_label_classification":
        raise ValueError(f"`classes` must be at least two names, got {names!r}.")
    return LabelReader(problem_type, names, column)


def _refuse_classes_of_numbers(settings: FinetuneSettings, column: str) -> None:
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


def _open(settings: FinetuneSettings) -> tuple[Tables, tuple[str, ...]]:
    """Return the tables by split and the class names, where the layout states them."""
    class_names: tuple[str, ...] = ()

    def read_folder(path: Path) -> Tables:
        nonlocal class_names
        if settings.task in BOX_TASKS:
            tables, class_names = read_coco(path, with_masks=settings.task == "instance-segmentation")
            return tables
        if not path.is_dir():
            raise ValueError(
                f"{settings.data!r} must be a folder, a .parquet or .tar file or a Hub id for {settings.task}."
            )
        if settings.task in LABEL_TASKS:
            return _open_class_folders(path)
        class_names = read_class_names(path) or ()
        return (read_mask_folder if settings.task == "semantic-segmentation" else read_depth_folder)(path)

    return open_tables(settings.data, read_folder), class_names


def _open_class_folders(path: Path) -> Tables:
    if holds_coco(path):
        raise ValueError(
            f"{path} has COCO annotations, which are for the tasks {' and '.join(BOX_TASKS)}; image-classification "
            "needs a sub-folder of images for each class."
        )
    return open_class_folders(path)


def _choose_columns(settings: FinetuneSettings, existing: Sequence[str]) -> dict[str, str]:
    """Return which columns become `image` and `target`."""
    wanted = {
        "image": (settings.image_column, IMAGE_COLUMNS),
        "target": (settings.target_column, TARGET_COLUMNS[settings.task]),
    }
    return {
        choose_column(role, given, candidates, existing, settings.data, settings.task): role
        for role, (given, candidates) in wanted.items()
    }


def _read_labels(
    tables: Tables, settings: FinetuneSettings, column: str
) -> tuple[Tables, tuple[str, ...], ProblemType]:
    """Return tables whose labels are numbers, checked, the names of the classes and what the labels are."""
    problem_type = find_problem_type(tables[TRAIN])
    if problem_type != "regression":
        return *number_classes(tables, column, settings.classes), problem_type
    _refuse_classes_of_numbers(settings, column)
    check_numbers(tables, column)
    return tables, (), problem_type


def _split(table: Dataset, settings: FinetuneSettings) -> tuple[Dataset, Dataset]:
    if len(table) < 2:
        raise ValueError(f"{settings.data!r} has one image: none is left for validation.")
    seed = derive_seed(settings.seed, "validation split") % 2**32
    parts = table.train_test_split(test_size=settings.validation_share, seed=seed)
    return cast("Dataset", parts["train"]), cast("Dataset", parts["test"])
