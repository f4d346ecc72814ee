"""The user's labeled images as evaluation data: folders, Parquet, webdataset, saved data sets and the Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

from modeling_radio.core.errors import first_few
from modeling_radio.core.imports import find_function
from modeling_radio.core.settings import hash_of, read_yaml
from modeling_radio.core.timing import ProgressBar
from modeling_radio.data.labeled.folders import (
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
from modeling_radio.data.labeled.labels import find_problem_type, number_classes, read_depth, read_mask
from modeling_radio.data.labeled.rows import DecodedImages, choose_rows, table_state
from modeling_radio.data.labeled.tables import (
    IMAGE_COLUMNS,
    choose_column,
    encoded,
    image_paths,
    open_class_folders,
    open_tables,
    read_row,
    readable_tables,
    with_columns,
)
from modeling_radio.data.sources import check_named_file, public_name
from modeling_radio.evaluation.data import KINDS, EvaluationData, Examples, Kind, Part, check_kind, groups_of
from modeling_radio.evaluation.data_captions import FILES, open_captions
from modeling_radio.evaluation.data_concepts import open_saco
from modeling_radio.evaluation.data_nyu import open_nyu
from modeling_radio.evaluation.data_pairs import open_navi, open_spair
from modeling_radio.evaluation.public_sets import OTHER_SETS, MaskSet, PublicPart, public_sets
from modeling_radio.evaluation.settings import CLASS_LAYOUTS, IMAGENET, NAMED_SETS, DataOptions, is_named_set
from modeling_radio.metrics.dense import IGNORE_INDEX
from modeling_radio.metrics.results import Source


if TYPE_CHECKING:
    from datasets import Dataset


MAX_UNLABELED = 256
"""Our choice of images for tasks without targets, such as consistency over sizes and fidelity to teachers."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "label": ("label", "labels", "class", "fine_label", "cls"),
    "mask": ("mask", "annotation", "segmentation", "semantic_segmentation"),
    "depth": ("depth", "depth_map"),
    "caption": ("caption", "captions", "text", "txt", "sentences"),
}
"""Column names that are tried if none is given. Groups have no usual name."""
KIND_OF = {"label": "labels", "mask": "masks", "depth": "depth", "caption": "captions"}


def open_data(source: str, options: DataOptions, *, size_px: int, seed: int = 0) -> EvaluationData:
    """Open a named set, or images in files.

    Args:
        source: A name of `NAMED_SETS`: "demo", whose images are made of packages; the import path of a
            function like theirs; or see `TableData`.
        options: Columns, splits and units; unused for sets that a function opens.
        size_px: Size at which these are opened.
        seed: Seed of the choice of images if not all are measured.

    Raises:
        ValueError: If the source cannot be opened.
        PackageError: If the demo's packages cannot be fetched.
    """
    if is_named_set(source):
        openers: dict[str, Callable[[int], Any] | str] = {name: named.opener for name, named in NAMED_SETS.items()}
        opened = find_function(source, openers, "data")(size_px)
        if not isinstance(opened, EvaluationData):
            raise ValueError(f"`data` {source!r} must return an `EvaluationData`, got a {type(opened).__name__}.")
        return opened
    if options.layout in OTHER_SETS:
        return _open_other(Path(source).expanduser(), options.layout, size_px)
    return TableData(source, options, seed=seed)


def _open_other(folder: Path, layout: str, size_px: int) -> PublicPart:
    readers: dict[str, Callable[[], PublicPart]] = {
        "spair": lambda: open_spair(folder, size_px),
        "navi": lambda: open_navi(folder),
        "nyu": lambda: open_nyu(folder),
        "sa-co": lambda: open_saco(folder),
        **{name: lambda name=name: open_captions(folder, name) for name in FILES},
    }
    return readers[layout]()


class TableData:
    """The user's images with their labels, masks, depth maps, captions and groups, as far as they have any.

    Folders have classes as sub-folders, `images/` beside `masks/` or `depth/` with files of equal names, or a
    `metadata.csv` as `datasets` reads it; each with folders such as `train/` and `test/` above, or without.

    Args:
        source: See `open_tables`.
        options: Columns, splits and units.
        seed: Seed of the choice of images if not all are measured.

    Raises:
        ValueError: If the source cannot be opened, or lacks a column or split of the options; the message names those
            that there are.
    """

    def __init__(self, source: str, options: DataOptions | None = None, *, seed: int = 0) -> None:
        self.source, self.options, self.seed = source, options or DataOptions(), seed
        self._class_ids: Sequence[str] = ()
        self.public = None if self.options.layout is None else public_sets()[self.options.layout]
        tables, self._mask_classes = self._open()
        roles = self._roles(next(iter(tables.values())))
        tables = readable_tables({split: with_columns(table, roles) for split, table in tables.items()})
        if self.public is not None:
            counts = {split: len(table) for split, table in tables.items()}
            self.public.check_counts(
                counts if len(counts) > 1 else {VALIDATION: counts[TRAIN]}
            )  # a lone one is "train"
        tables, self._label_names = self._number_labels(tables, roles)
        self.roles = {role for role in roles.values() if role != "target"} | ({"label"} if self._label_names else set())
        self.test = self._rows(tables[VALIDATION] if VALIDATION in tables else tables[TRAIN], "test")
        self.train = self._rows(tables[TRAIN], "train") if VALIDATION in tables and TRAIN in tables else None
        if self.options.train_data is not None:
            self.train = self._train_rows(self.options.train_data)

    def _rows(self, table: Dataset, split: str) -> SplitRows:
        rows = SplitRows(self, table, split)
        return rows if self.options.max_images is None else rows.chosen(self.options.max_images)

    def _train_rows(self, source: str) -> SplitRows:
        """Return the images of other data, of the classes that these data have too.

        Raises:
            ValueError: If these data have a train split, or no classes, or a class has no image.
        """
        if self.train is not None or not self._class_ids:
            reason = "without classes" if self.train is None else "with a train split of its own"
            raise ValueError(f"`train_data` must be left out for `data` {reason}, got {source!r}.")
        layout = IMAGENET if self.options.layout in CLASS_LAYOUTS else None
        other = TableData(source, DataOptions(layout=layout))
        rows = other.train or other.test
        own = {name: index for index, name in enumerate(self._class_ids)}
        index_of = [own.get(name, -1) for name in other._class_ids]
        labels = [index_of[label] for label in rows.table["target"][:]]
        missing = [self._class_ids[index] for index in sorted(set(range(len(own))) - set(labels))]
        if missing:
            raise ValueError(f"`train_data` must have images of all classes, {source!r} lacks {first_few(missing, 2)}.")
        kept = [row for row, label in enumerate(labels) if label >= 0]
        table: Any = rows.table.select(kept)  # declared as a union
        table = table.remove_columns("target").add_column("target", [labels[row] for row in kept])
        rows = SplitRows(other, table, "train")
        return rows if self.options.max_images is None else rows.chosen(self.options.max_images)

    @property
    def name(self) -> str:
        """The last part of the source, such as the folder's name."""
        return public_name(self.source).name

    def kinds(self) -> frozenset[Kind]:
        """Return the kinds of parts that the columns allow."""
        known = [kind for role, kind in KIND_OF.items() if role in self.roles]
        return frozenset(kind for kind in KINDS if kind in ("images", "photographs", *known))

    def part(self, kind: Kind) -> Part:
        """Return the images for tasks of one kind.

        Raises:
            ValueError: If there are no images of this kind; the message names the kinds that there are.
        """
        check_kind(self.source, kind, self.kinds())
        if kind in ("images", "photographs"):
            return Part(self.name, self.test.chosen(MAX_UNLABELED).examples())
        names = self._label_names if kind == "labels" else self.mask_names if kind == "masks" else ()
        train = None if self.train is None else self.train.examples(kind)
        return Part(self.name, self.test.examples(kind), train, names, has_protocol=self.public is not None)

    @cached_property
    def mask_names(self) -> tuple[str, ...]:
        """The classes of the masks; without a `classes.txt` in the folder, numbers up to the largest in any mask."""
        if self._mask_classes:
            return self._mask_classes
        largest = -1
        for split in filter(None, (self.train, self.test)):
            masks = Masks(split, None)
            for index in ProgressBar(range(len(masks)), desc="classes of masks", leave=False, disable=None):
                ids = masks[index]
                largest = max([largest, *ids[ids != IGNORE_INDEX].unique().tolist()])
        return tuple(f"class {number}" for number in range(largest + 1))

    def sources(self) -> list[Source]:
        """Return the origin of the images."""
        counts = f"{len(self.test)} images measured" + (f", {len(self.train)} to learn from" if self.train else "")
        name, origin, hub_id = public_name(self.source)
        own = Source(name, "evaluation", "see its origin", origin, counts, hub_id)
        others = [] if self.train is None or self.train.data is self else self.train.data.sources()
        return [own, *others]

    def remarks(self, neighbors: int) -> list[str]:
        """Return the numbers of images; see `EvaluationData.remarks`."""
        if self.train is None:
            others = "those of other sources" if "group" in self.roles else "the others"
            return [f"{self.name}: {len(self.test)} images without a split; each is compared with {others}."]
        return [f"{self.name}: {len(self.test)} images measured, {len(self.train)} to learn from or compare with."]

    def _open(self) -> tuple[Tables, tuple[str, ...]]:
        """Return the tables by split, and the classes of `classes.txt` beside masks."""
        asked = {TRAIN: self.options.train_split, VALIDATION: self.options.test_split}
        names: dict[str, Sequence[str]] = {
            split: usual if asked[split] is None else (str(asked[split]),) for split, usual in SPLIT_NAMES.items()
        }
        class_names = self.public.class_names if isinstance(self.public, MaskSet) else ()

        def read_folder(path: Path) -> Tables:
            nonlocal class_names
            if not path.is_dir():
                raise ValueError(f"`data` must be a folder, .parquet or .tar files or a Hub id, got {self.source!r}.")
            if isinstance(self.public, MaskSet):
                return self.public.read(path)
            targets = [folders for folders in (MASK_FOLDERS, DEPTH_FOLDERS) if holds(path, folders, names)]
            if not targets or not holds(path, IMAGE_FOLDERS, names):
                return open_class_folders(path, names)
            class_names = read_class_names(path) or ()
            readers = {MASK_FOLDERS: read_mask_folder, DEPTH_FOLDERS: read_depth_folder}
            return _joined([readers[folders](path, names) for folders in targets])

        tables = open_tables(self.source, read_folder, names)
        if VALIDATION not in tables and asked[VALIDATION] is not None:
            raise ValueError(f"`test_split` must be a split of {self.source!r}, got {asked[VALIDATION]!r}.")
        if VALIDATION not in tables and len(tables) > 1:
            raise ValueError(f"`test_split` must be one of the splits {', '.join(tables)}, got none.")
        if len(tables) == 1:
            return {TRAIN: next(iter(tables.values()))}, class_names
        return {split: tables[split] for split in (TRAIN, VALIDATION) if split in tables}, class_names

    def _roles(self, table: Dataset) -> dict[str, str]:
        """Return the roles of columns: `image`, `target` (the class), `mask`, `depth`, `caption` and `group`."""
        from datasets import Image

        existing, purpose = table.column_names, "the evaluation"
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
                    f"`{role}_column` must be another column, got {column!r}, already `{roles[column]}_column`."
                )
            is_mask = role == "label" and isinstance(table.features[column], Image)
            roles[column] = "mask" if is_mask else role
        return {column: "target" if role == "label" else role for column, role in roles.items()}

    def _number_labels(self, tables: Tables, roles: Mapping[str, str]) -> tuple[Tables, tuple[str, ...]]:
        """Return tables whose labels are class indices, and the classes; empty if images have no or only one class."""
        column = next((name for name, role in roles.items() if role == "target"), None)
        if column is None:
            return tables, ()
        first = next(iter(tables.values()))
        problem = find_problem_type(first)
        if problem == "single_label_classification" and len(set(first["target"][:])) > 1:
            tables, names = number_classes({TRAIN: first, **tables}, column, None)
            self._class_ids = wordnet_ids_of(names) if self.options.layout in CLASS_LAYOUTS else names
            asked = self.options.class_names
            given = names if asked is None else imagenet_names_of(names) if asked == IMAGENET else read_names(asked)
            if len(given) != len(names):
                raise ValueError(f"`class_names` must be {len(names)} names, one for each class, got {len(given)}.")
            return tables, tuple(given)
        if self.options.label_column is not None:
            raise ValueError(
                f"`label_column` must hold one of several classes for each image, got {column!r} with "
                f"{'one class' if problem == 'single_label_classification' else problem.replace('_', ' ')}."
            )
        return tables, ()


def _joined(tables: Sequence[Tables]) -> Tables:
    """Join masks and depth maps of the same images in one table for each split; images without both are left out."""
    if len(tables) == 1:
        return tables[0]
    joined: Tables = {}
    for split in tables[0].keys() & tables[1].keys():
        first, second = (each[split] for each in tables)
        row_of = {path: row for row, path in enumerate(image_paths(second, "image"))}
        paths = image_paths(first, "image")
        rows = [row for row, path in enumerate(paths) if path in row_of]
        first = cast("Dataset", first.select(rows))
        depth = cast("Dataset", second.select([row_of[paths[row]] for row in rows]))["depth"][:]
        joined[split] = cast("Dataset", first.add_column("depth", list(depth)))  # pyrefly: ignore[missing-argument]
    return joined


def imagenet_class_names() -> list[str]:
    """Return torchvision's names of the 1,000 ImageNet classes, in the order of classifiers and of the folders' codes.

    `imagenet_names.yaml` has OpenAI's, of which 296 differ: "drake" is its "duck", "barrow" its "wheelbarrow".
    """
    return EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]


def imagenet_names_of(folders: Sequence[str]) -> list[str]:
    """Return OpenAI's names of classes whose folders are named by WordNet ids, by indices, or are all thousand.

    Subsets such as ImageNet-A and -R have only some of the ids. A thousand folders with other names are in the order of
    the indices.
    """
    names: list[str] = read_yaml(Path(__file__).with_name("imagenet_names.yaml").read_text(encoding="utf-8"))
    indices = {wnid: index for index, wnid in enumerate(ImageNetInfo().label_names())}
    indices |= {str(index): index for index in range(len(names))}
    if all(folder in indices for folder in folders):
        return [names[indices[folder]] for folder in folders]
    return names


def wordnet_ids_of(folders: Sequence[str]) -> list[str]:
    """Return the WordNet ids of classes of ImageNet whose folders are named by them or by indices."""
    ids = ImageNetInfo().label_names()
    return [ids[int(name)] if name.isdecimal() and int(name) < len(ids) else name for name in folders]


def read_names(given: str) -> list[str]:
    """Return the lines of a file.

    Raises:
        ValueError: If the file cannot be read.
    """
    try:
        return [line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`class_names` must be a text file or {IMAGENET!r}, got {given!r}: {error}.") from error


class SplitRows:
    """The rows of one split.

    Args:
        data: The data set.
        table: Columns by role.
        split: "train" or "test".
    """

    def __init__(self, data: TableData, table: Dataset, split: str) -> None:
        self.data, self.table, self.split = data, table, split

    def __len__(self) -> int:
        return len(self.table)

    def chosen(self, most: int) -> SplitRows:
        """Return a seeded choice of at most so many rows, in their order."""
        return SplitRows(self.data, choose_rows(self.table, most, self.data.seed, self.split), self.split)

    def examples(self, kind: Kind = "images") -> Examples:
        """Return the images with the targets of a kind of tasks."""
        data = self.data
        groups = groups_of([str(value) for value in self._column("group")]) if "group" in data.roles else None
        known: dict[str, Any] = {}
        if kind == "labels":
            known["labels"] = torch.tensor(list(self._column("target")))
            if data.public is not None and self.split == "test":
                images = image_paths(self.table, "image")
                known["answers"] = data.public.read_answers(Path(data.source).expanduser(), images)
        elif kind == "masks":
            known["masks"] = Masks(self, len(data.mask_names))
        elif kind == "depth":
            known["depth"] = DepthMaps(self)
        elif kind == "captions":
            known["captions"] = [
                _texts(value, self.where(index)) for index, value in enumerate(self._column("caption"))
            ]
        own = hash_of({"images": table_state(self.table, ["image"], data.source)})[:16]
        images = DecodedImages(self.table, data.source, self.where)
        return Examples(images, self._fingerprint(kind, known), groups=groups, own_fingerprint=own, **known)

    def _fingerprint(self, kind: Kind, known: Mapping[str, Any]) -> str:
        """Return a hash of files' names, sizes and times, or of the table, of targets, and of the options for them."""
        columns = [column for column in ("image", "mask", "depth") if column in self.table.column_names]
        state = table_state(self.table, columns, self.data.source)
        targets = {key: value.tolist() for key, value in known.items() if isinstance(value, Tensor)}
        content = {
            "kind": kind if kind != "photographs" else "images",
            "state": state,
            "targets": targets,
            "texts": known.get("captions", []),
        } | ({"answers": known["answers"]} if known.get("answers") else {})
        options = self.data.options
        reading = {"masks": options.layout or options.reduce_labels, "depth": options.depth_scale}.get(kind)
        return hash_of(content | ({"reading": reading} if reading else {}))[:16]

    @property
    def name(self) -> str:
        """Name of an image of the split in errors, without its index."""
        return f"{self.split} image"

    def where(self, index: int) -> str:
        """Return the name of an image in errors."""
        return f"{self.name} {index}"

    def _column(self, role: str) -> list[Any]:
        return self.table.select_columns([role])[:][role]


class Masks:
    """The masks of a split; ids of no class are refused if the number of classes is known."""

    def __init__(self, rows: SplitRows, num_classes: int | None) -> None:
        self.rows, self.num_classes = rows, num_classes
        self.table = encoded(cast("Dataset", rows.table.select_columns(["mask"])))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        where = self.rows.where(index)
        ids = read_mask(read_row(self.table, index, self.rows.name)["mask"], where)
        public = self.rows.data.public
        if isinstance(public, MaskSet):
            return public.class_indices(ids)
        if self.rows.data.options.reduce_labels:
            ids = torch.where((ids == 0) | (ids == IGNORE_INDEX), IGNORE_INDEX, ids - 1)
        wrong = ids[((ids < 0) | (ids >= (self.num_classes or IGNORE_INDEX))) & (ids != IGNORE_INDEX)]
        if len(wrong):
            raise ValueError(
                f"The mask of {where} must have ids below {self.num_classes or IGNORE_INDEX} ({IGNORE_INDEX} is "
                f"ignored), got {int(wrong.max())}. Correct it, or name all classes in classes.txt."
            )
        return ids


class DepthMaps:
    """The depth maps of a split, in meters."""

    def __init__(self, rows: SplitRows) -> None:
        self.rows, self.table = rows, encoded(cast("Dataset", rows.table.select_columns(["depth"])))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        depth = read_row(self.table, index, self.rows.name)["depth"]
        if isinstance(depth, str):
            check_named_file(depth, self.rows.data.source)
        return read_depth(depth, self.rows.where(index), self.rows.data.options.depth_scale)


def _texts(value: Any, where: str) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value or [])
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"The caption of {where} must be a text or a list of texts, got {value!r:.60}.")
    return texts
