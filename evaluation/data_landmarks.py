"""Revisited Oxford and Paris buildings: cropped queries, a database, and what each query should find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from modeling_radio.core.settings import hash_of
from modeling_radio.evaluation.data import Examples, Relevance
from modeling_radio.evaluation.public_sets import (
    OTHER_SETS,
    PublicPart,
    check_count,
    files_state,
    load_image_file,
    plain,
    read_json,
    size_of_image_file,
)
from modeling_radio.training.data.decoding import to_tensor


QUERIES = 70
DATABASE = {"roxford": 4993, "rparis": 6322}
"""Queries and images of the sets. https://arxiv.org/abs/1803.11285; MTEB counts the same."""
GROUND_TRUTH = {"roxford": "gnd_roxford5k.json", "rparis": "gnd_rparis6k.json"}


Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels."""


@dataclass(frozen=True)
class _Query:
    bbx: Box
    easy: list[int]
    hard: list[int]
    junk: list[int]


@dataclass(frozen=True)
class _GroundTruth:
    imlist: list[str]
    qimlist: list[str]
    gnd: list[_Query]


_GROUND_TRUTH = TypeAdapter(_GroundTruth)


class FileImages:
    """Images, or rectangles of them.

    Args:
        paths: Files of the images.
        boxes: Rectangle of each; None for whole images.
    """

    def __init__(self, paths: list[Path], boxes: list[Box] | None = None) -> None:
        self.paths, self.boxes = paths, boxes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = load_image_file(self.paths[index])
        return to_tensor(image if self.boxes is None else image.crop(self.boxes[index]))

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width in pixels."""
        if self.boxes is None:
            return size_of_image_file(self.paths[index])
        left, top, right, bottom = map(round, self.boxes[index])  # as Pillow crops
        return bottom - top, right - left


def open_landmarks(folder: Path, name: str) -> PublicPart:
    """Open a folder of ROxford or RParis.

    The official ground truth is a pickle, which is code: the JSON file beside it has the same content.

    Args:
        folder: Has `jpg/` and the ground truth as JSON, `gnd_roxford5k.json` or `gnd_rparis6k.json`.
        name: "roxford" or "rparis".

    Raises:
        ValueError: If images are missing, or the ground truth is damaged.
    """
    origin, file = OTHER_SETS[name], folder / GROUND_TRUTH[name]
    truth = read_json(_GROUND_TRUTH, file)
    check_count(origin.title, "queries", min(len(truth.qimlist), len(truth.gnd)), QUERIES, origin.address)
    check_count(origin.title, "images of the database", len(truth.imlist), DATABASE[name], origin.address)
    database, queries = (
        [folder / "jpg" / f"{plain(image, file)}.jpg" for image in names] for names in (truth.imlist, truth.qimlist)
    )
    every = [index for query in truth.gnd for index in (*query.easy, *query.hard, *query.junk)]
    if every and not 0 <= min(every) <= max(every) < len(database):
        raise ValueError(f"{file} must have indices of its images, got {max(every)}.")
    relevance = [Relevance(query.easy, query.hard, query.junk) for query in truth.gnd]
    crops = FileImages(queries, [query.bbx for query in truth.gnd])
    state = f"{files_state(folder, queries)} {hash_of({'queries': repr(truth.gnd)})[:16]}"
    test = Examples(crops, state, relevance=relevance, groups=_buildings(relevance))
    return PublicPart(
        origin.title,
        ("landmarks",),
        test,
        origin.address,
        Examples(FileImages(database), files_state(folder, database)),
    )


def _buildings(relevance: Sequence[Relevance]) -> Tensor:
    """Return the building of each query, int64 `(num_queries,)`: queries that should find the same image show one."""
    from scipy.sparse.csgraph import connected_components

    wanted = [{*each.easy, *each.hard} for each in relevance]
    shared = [[not one.isdisjoint(other) for other in wanted] for one in wanted]
    return torch.from_numpy(connected_components(np.array(shared))[1]).long()
