"""Public data sets in their official folders: where their files lie, their classes, and how many images each split has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from modeling_radio.core.errors import first_few
from modeling_radio.training.data.labeled.folders import VALIDATION, Tables, read_names, table_of_pairs
from modeling_radio.training.evaluation.metrics.dense import IGNORE_INDEX


@dataclass(frozen=True)
class MaskSet:
    """A set of images with class maps, an entry of `public_sets.yaml`.

    Attributes:
        title: Its name in messages.
        address: Where it comes from.
        folder: Its folder below `--data-root`.
        images: Path of an image below its folder, with `{split}` and `{name}`.
        targets: Path of its class map.
        splits: The set's own word for each split.
        counts: Number of images of each split.
        classes: Name of each class by its id in the maps; classes are numbered in this order.
        lists: Path of the file that lists the names of a split; None takes all class maps there are.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    title: str
    address: str
    folder: str
    images: str
    targets: str
    splits: dict[str, str]
    counts: dict[str, int]
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
            ValueError: If there is none, or an image of a list is missing.
        """
        pairs = {split: self._pairs(folder, split) for split in self.splits}
        if not pairs[VALIDATION]:
            places = " and ".join(path.format(split=self.splits[VALIDATION], name="*") for path in self._paths)
            raise ValueError(f"`data` must have {self.title} with {places}, got {str(folder)!r}. See {self.address}")
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

    def check_counts(self, counts: Mapping[str, int]) -> None:
        """Raise ValueError unless each split that is there has all images of the official one.

        Args:
            counts: Number of images of each split.
        """
        for split, found in counts.items():
            if found != self.counts[split]:
                raise ValueError(
                    f"`data` must have the {self.counts[split]} {split} images of {self.title}, got {found}: a part is "
                    f"not measured under the name of the set. See {self.address}"
                )


@cache
def mask_sets() -> dict[str, MaskSet]:
    """Return the public sets with class maps by name."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return TypeAdapter(dict[str, MaskSet]).validate_python(content)
