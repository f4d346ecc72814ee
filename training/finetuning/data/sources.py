"""Where labeled images come from: a folder, Parquet files, a saved data set or a Hub id, with their two splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from foundation.seeds import derive_seed
from modeling_radio.classification_radio import ProblemType
from modeling_radio.messages_radio import did_you_mean
from training.finetuning.data.coco import holds_coco, read_coco
from training.finetuning.data.labels import check_numbers, find_problem_type, number_classes
from training.finetuning.data.layouts import (
    TRAIN,
    VALIDATION,
    Tables,
    read_class_names,
    read_depth_folder,
    read_mask_folder,
)
from training.finetuning.data.readable import readable_tables
from training.finetuning.settings import BOX_TASKS, FinetuneSettings


if TYPE_CHECKING:
    from datasets import Dataset


IMAGE_COLUMNS = ("image", "img", "jpg", "png", "pixel_values")
TARGET_COLUMNS = {
    "image-classification": ("label", "labels", "class", "fine_label"),
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
    """

    train: Dataset
    validation: Dataset
    class_names: tuple[str, ...]
    remark: str
    problem_type: ProblemType | None = None


def load_images(settings: FinetuneSettings) -> LabeledImages:
    """Open the source that the settings name.

    Raises:
        ValueError: If nothing is there, it is not laid out as the task needs, a column is missing, a label is wrong, or
            two classes have one name.
    """
    tables, class_names = _open(settings)
    class_names = settings.classes or class_names
    _require_distinct(class_names)
    if TRAIN not in tables:
        raise ValueError(f"{settings.data!r} has no split 'train'; it has {', '.join(tables)}.")
    columns = _choose_columns(settings, tables[TRAIN].column_names)
    tables = readable_tables({split: _with_columns(table, columns) for split, table in tables.items()})
    problem_type = None
    if settings.task == "image-classification":
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


def _require_distinct(class_names: tuple[str, ...]) -> None:
    repeated = sorted({name for name in class_names if class_names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"Several classes have the name {', '.join(map(repr, repeated))}: give `classes`, a name of its own for "
            "each in the order of their ids."
        )


def _open(settings: FinetuneSettings) -> tuple[Tables, tuple[str, ...]]:
    """Return the tables by split and the class names, where the layout states them."""
    path = Path(settings.data).expanduser()
    if not path.exists():
        return _open_hub(settings.data), ()
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        return _open_parquet(path), ()
    if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return _open_saved(path), ()
    if settings.task in BOX_TASKS:
        return read_coco(path, with_masks=settings.task == "instance-segmentation")
    if not path.is_dir():
        raise ValueError(f"{settings.data!r} must be a folder, a .parquet file or a Hub id for {settings.task}.")
    if settings.task == "image-classification":
        return _open_class_folders(path), ()
    reader = read_mask_folder if settings.task == "semantic-segmentation" else read_depth_folder
    return reader(path), read_class_names(path) or ()


def _open_hub(name: str) -> Tables:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"`data` {name!r} does not exist.")
    from datasets import load_dataset

    try:
        return _to_tables(load_dataset(name))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`data` {name!r} is no folder or file here, and no data set of the Hub: {reason}") from error


def _open_parquet(path: Path) -> Tables:
    from datasets import load_dataset

    if path.is_file():
        return _to_tables(load_dataset("parquet", data_files=str(path)))
    return _to_tables(load_dataset("parquet", data_dir=str(path)))


def _open_saved(path: Path) -> Tables:
    from datasets import load_from_disk

    return _to_tables(load_from_disk(str(path)))


def _open_class_folders(path: Path) -> Tables:
    from datasets import load_dataset

    if holds_coco(path):
        raise ValueError(
            f"{path} has COCO annotations, which are for the tasks {' and '.join(BOX_TASKS)}; image-classification "
            "needs a sub-folder of images for each class."
        )
    try:
        return _to_tables(load_dataset("imagefolder", data_dir=str(path), drop_labels=False))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{path} has no images in class sub-folders: {str(error).splitlines()[0]}") from error


def _to_tables(opened: Any) -> Tables:
    """Return splits under our two names; a lone table is the training split, "test" stands in for "validation"."""
    from datasets import DatasetDict

    if not isinstance(opened, DatasetDict):
        return {TRAIN: opened}
    tables = {str(split): table for split, table in opened.items()}
    if VALIDATION not in tables and "test" in tables:
        tables[VALIDATION] = tables["test"]
    return {split: table for split, table in tables.items() if split in (TRAIN, VALIDATION)} or tables


def _choose_columns(settings: FinetuneSettings, existing: Sequence[str]) -> dict[str, str]:
    """Return which columns become `image` and `target`."""
    wanted = {
        "image": (settings.image_column, IMAGE_COLUMNS),
        "target": (settings.target_column, TARGET_COLUMNS[settings.task]),
    }
    chosen = {}
    for role, (given, candidates) in wanted.items():
        name = given or next((candidate for candidate in candidates if candidate in existing), None)
        if name is None or name not in existing:
            asked = f"no column {given!r}.{did_you_mean(str(given), existing)}" if given else "no column"
            raise ValueError(
                f"{settings.data!r} has {asked} for the {role} of {settings.task}; it has {', '.join(existing)}. Set "
                f"`{role}_column`."
            )
        chosen[name] = role
    return chosen


def _with_columns(table: Dataset, columns: dict[str, str]) -> Dataset:
    table = cast("Dataset", table.with_format(None).select_columns(list(columns)))
    return table.rename_columns({old: new for old, new in columns.items() if old != new})


def _read_labels(
    tables: Tables, settings: FinetuneSettings, column: str
) -> tuple[Tables, tuple[str, ...], ProblemType]:
    """Return tables whose labels are numbers, checked, the names of the classes and what the labels are."""
    problem_type = find_problem_type(tables[TRAIN])
    if problem_type != "regression":
        return *number_classes(tables, column, settings.classes), problem_type
    if settings.classes is not None:
        raise ValueError(
            f"`classes` names classes, but column {column!r} of {settings.data!r} has floats, which are measured "
            "numbers: leave `classes` out, or store the ids of classes as integers."
        )
    check_numbers(tables, column)
    return tables, (), problem_type


def _split(table: Dataset, settings: FinetuneSettings) -> tuple[Dataset, Dataset]:
    if len(table) < 2:
        raise ValueError(f"{settings.data!r} has one image: none is left for validation.")
    seed = derive_seed(settings.seed, "validation split") % 2**32
    parts = table.train_test_split(test_size=settings.validation_share, seed=seed)
    return cast("Dataset", parts["train"]), cast("Dataset", parts["test"])
