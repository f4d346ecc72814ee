"""Public data sets in their official folders: where files lie, which classes they have, how many images there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from modeling_radio.core.errors import first_few
from modeling_radio.core.settings import hash_of, read_yaml
from modeling_radio.data.decoding import (
    EncodedImage,
    UnusableImageError,
    decode_rgb,
    image_size,
    load_image,
    to_tensor,
)
from modeling_radio.data.image_folder import files_fingerprint
from modeling_radio.data.labeled.folders import VALIDATION, Tables, read_names, table_of_pairs
from modeling_radio.evaluation.data import Examples, Kind, Part, check_kind
from modeling_radio.metrics.dense import IGNORE_INDEX
from modeling_radio.metrics.results import Source


T = TypeVar("T")


@dataclass(frozen=True)
class SetOrigin:
    """Origin of a public set, and its folder below `--data-root`."""

    title: str
    address: str
    folder: str


OTHER_SETS = {
    "spair": SetOrigin("SPair-71k", "https://cvlab.postech.ac.kr/research/SPair-71k/", "SPair-71k"),
    "navi": SetOrigin("NAVI", "https://github.com/google/navi", "navi_v1"),
    "nyu": SetOrigin("NYU depth", "https://github.com/mbanani/probe3d/tree/main/data_processing", "nyu"),
    "sa-co": SetOrigin("SA-Co/Gold", "https://huggingface.co/datasets/facebook/SACo-Gold", "SACo-Gold"),
    "flickr30k": SetOrigin("Flickr30k", "https://cs.stanford.edu/people/karpathy/deepimagesent/", "flickr30k"),
    "coco": SetOrigin("COCO captions", "https://cs.stanford.edu/people/karpathy/deepimagesent/", "coco"),
}
"""Public sets with readers of their own."""


def find_public(layout: str) -> SetOrigin | ClassSet:
    """Return the origin of a public set."""
    return OTHER_SETS[layout] if layout in OTHER_SETS else public_sets()[layout]


@dataclass(frozen=True)
class ClassSet:
    """A set of images in a folder for each class, an entry of `public_sets.yaml`.

    Attributes:
        title: Its name in messages.
        address: Where it comes from.
        folder: Its folder below `--data-root`.
        counts: Number of images of each split.
        answers: JSON file with a list of all right classes for each validation image, in the order of their numbers.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    title: str
    address: str
    folder: str
    counts: dict[str, int]
    answers: str | None = None

    def check_counts(self, counts: Mapping[str, int]) -> None:
        """Raise ValueError unless each split that is there has all images of the official one.

        Args:
            counts: Number of images of each split.
        """
        for split, found in counts.items():
            check_count(self.title, f"{split} images", found, self.counts.get(split, 0), self.address)

    def read_answers(self, folder: Path, images: Sequence[str | None]) -> list[list[int]] | None:
        """Return all right classes of validation images, or None for a set with one class for each.

        Args:
            folder: The folder of the set.
            images: Files of the images, whose names end in their number, such as ILSVRC2012_val_00000001.JPEG.

        Raises:
            ValueError: If the file is missing or does not have the image.
        """
        if self.answers is None:
            return None
        every = read_json(_ANSWERS, folder / self.answers)
        numbers = [Path(image or "").stem.rpartition("_")[2] for image in images]
        wrong = [number for number in numbers if not number.isdecimal() or not 0 < int(number) <= len(every)]
        if wrong:
            raise ValueError(
                f"`data` must have images with a number up to {len(every)} in their name, got {wrong[0]!r}."
            )
        return [every[int(number) - 1] for number in numbers]


@dataclass(frozen=True, kw_only=True)
class MaskSet(ClassSet):
    """A set of images with class maps, an entry of `public_sets.yaml`.

    Attributes:
        images: Path of an image below its folder, with `{split}` and `{name}`.
        targets: Path of its class map.
        splits: The set's own word for each split.
        classes: Name of each class by its id in the maps; classes are numbered in this order.
        lists: Path of the file that lists the names of a split; None takes all class maps there are.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    images: str
    targets: str
    splits: dict[str, str]
    classes: dict[int, str]
    lists: str | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by index."""
        return tuple(self.classes.values())

    def class_indices(self, ids: Tensor) -> Tensor:
        """Return class indices of the ids of a class map; `IGNORE_INDEX` for ids of no class."""
        table = torch.full((256,), IGNORE_INDEX)
        table[list(self.classes)] = torch.arange(len(self.classes))
        return torch.where((ids >= 0) & (ids < len(table)), table[ids.clamp(0, len(table) - 1)], IGNORE_INDEX)

    def read(self, folder: Path) -> Tables:
        """Return columns `image` and `mask` of the splits that a folder has, the validation split among them.

        Raises:
            ValueError: If there is no validation split, or an image of a list is missing.
        """
        pairs = {split: self._pairs(folder, split) for split in self.splits}
        if not pairs[VALIDATION]:
            patterns = " and ".join(path.format(split=self.splits[VALIDATION], name="*") for path in self._paths)
            raise ValueError(f"`data` must have {self.title} with {patterns}, got {str(folder)!r}. See {self.address}")
        return {split: table_of_pairs(found, "mask") for split, found in pairs.items() if found}

    @property
    def _paths(self) -> tuple[str, str]:
        return self.images, self.targets

    def _pairs(self, folder: Path, split: str) -> list[tuple[Path, Path]]:
        paths = [path.replace("{split}", self.splits[split]) for path in self._paths]
        first, last = paths[1].split("{name}")
        root = folder / first
        if self.lists is None:
            names = [str(path.relative_to(root)).removesuffix(last) for path in sorted(root.rglob(f"*{last}"))]
        else:
            list_file = folder / self.lists.format(split=self.splits[split])
            names = read_names(list_file) if list_file.is_file() else []
        pairs = [(folder / paths[0].format(name=name), folder / paths[1].format(name=name)) for name in names]
        missing = [str(path.relative_to(folder)) for pair in pairs for path in pair if not path.is_file()]
        if missing:
            raise ValueError(
                f"`data` must have all files of {self.title}, {str(folder)!r} lacks {first_few(missing, 2)}. "
                f"See {self.address}"
            )
        return pairs


def check_count(title: str, what: str, found: int, expected: int, address: str) -> None:
    """Raise ValueError unless a folder has as many of something as the official set."""
    if found != expected:
        raise ValueError(
            f"`data` must have the {expected} {what} of {title}, got {found}: a part is not measured under the name of "
            f"the set. See {address}"
        )


_ANSWERS = TypeAdapter(list[list[int]])


@cache
def public_sets() -> dict[str, ClassSet | MaskSet]:
    """Return the public sets with classes or class maps by name."""
    content = read_yaml(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    masks = TypeAdapter(dict[str, MaskSet]).validate_python(content["masks"])
    return masks | TypeAdapter(dict[str, ClassSet]).validate_python(content["classes"])


def read_json(adapter: TypeAdapter[T], path: Path) -> T:
    """Return the checked content of a JSON file of a public set.

    Raises:
        ValueError: If it is missing or something else.
    """
    try:
        return adapter.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"`data` must have the official file {path.name}, got {str(path)!r}: {reason:.200}") from error


def plain(name: str, file: Path) -> str:
    """Return a name that a file lists; raise ValueError if it leads out of its folder."""
    if Path(name).name != name:
        raise ValueError(f"{file} must list plain names of files, got {name!r}.")
    return name


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnusableImageError) as error:
        raise ValueError(f"`data` must have images that can be decoded, got {str(path)!r}: {error}.") from error


def load_image_file(path: Path, *, as_stored: bool = False) -> Image.Image:
    """Open an image of a public set, upright: as RGB, or in the mode that it is stored in.

    Raises:
        ValueError: If it is missing or damaged.
    """
    image = EncodedImage(str(path), path)
    with _damage_named(path):
        return load_image(image) if as_stored else decode_rgb(image, smallest_px=1)


def size_of_image_file(path: Path) -> tuple[int, int]:
    """Return height and width in pixels of an image of a public set, upright, without decoding it.

    Raises:
        ValueError: If it is missing or no image.
    """
    with _damage_named(path):
        return image_size(EncodedImage(str(path), path))


class FileImages:
    """Images of files.

    Args:
        paths: The files.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return to_tensor(load_image_file(self.paths[index]))

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels."""
        return size_of_image_file(self.paths[index])


def files_state(folder: Path, paths: Sequence[Path]) -> str:
    """Return a hash of names, order, sizes and times of files.

    Raises:
        ValueError: If one is missing.
    """
    names = [str(path.relative_to(folder)) for path in paths]
    missing = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        raise ValueError(f"`data` {str(folder)!r} lacks {first_few(missing, 2)}: unpack it anew.")
    return f"{files_fingerprint(dict(zip(names, paths, strict=True)))} {hash_of({'order': names})[:16]}"


@dataclass(frozen=True)
class PublicPart:
    """A public set with a reader of its own; see `EvaluationData`.

    Attributes:
        name: Its name in measurements.
        served: The kinds.
        test: The images that are measured.
        address: Where it comes from.
        train: Images that probes are trained on.
        class_names: Names of its classes.
    """

    name: str
    served: tuple[Kind, ...]
    test: Examples
    address: str
    train: Examples | None = None
    class_names: tuple[str, ...] = ()

    def kinds(self) -> frozenset[Kind]:
        """Return the kinds that it serves, and "images" for the report."""
        return frozenset({*self.served, "images"})

    def part(self, kind: Kind) -> Part:
        """Return the images; see `EvaluationData.part`."""
        check_kind(self.name, kind, self.kinds())
        if kind == "images":
            return Part(self.name, Examples(self.test.images, self.test.image_fingerprint))
        return Part(self.name, self.test, self.train, self.class_names, has_protocol=True)

    def sources(self) -> list[Source]:
        """Return the origin of the images."""
        return [Source(self.name, "evaluation", "see its origin", self.address, f"{len(self.test)} images measured")]

    def remarks(self, neighbors: int) -> list[str]:
        """Return the number of images."""
        pairs = "" if self.test.pairs is None else f" in {len(self.test.pairs)} pairs"
        return [f"{self.name}: {len(self.test)} images{pairs}."]
