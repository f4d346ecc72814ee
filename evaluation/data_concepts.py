"""Phrases and the masks of all objects that they name: SA-Co/Gold, its seven subsets and three annotators."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter

from modeling_radio.evaluation.data import Examples, Phrase
from modeling_radio.evaluation.public_sets import (
    OTHER_SETS,
    FileImages,
    PublicPart,
    check_count,
    files_state,
    read_json,
)


SACO = OTHER_SETS["sa-co"]
SUBSETS = {
    "metaclip": 33_393,
    "sa1b": 13_258,
    "crowded": 20_687,
    "fg_food": 13_951,
    "fg_sports_equipment": 12_166,
    "attributes": 9_245,
    "wiki_common": 65_502,
}
"""Pairs of an image and a phrase in each subset, by scripts/eval/gold/README.md of facebookresearch/sam3."""
ANNOTATORS = ("a", "b", "c")


@dataclass(frozen=True)
class _ImageAndPhrase:
    id: int | str
    file_name: str
    text_input: str
    height: int
    width: int
    is_instance_exhaustive: bool


@dataclass(frozen=True)
class _Runs:
    counts: str
    size: tuple[int, int]


@dataclass(frozen=True)
class _Object:
    image_id: int | str
    segmentation: _Runs
    iscrowd: bool = False


@dataclass(frozen=True)
class _Annotations:
    images: list[_ImageAndPhrase]
    annotations: list[_Object]


_ANNOTATIONS = TypeAdapter(_Annotations)


def open_saco(folder: Path) -> PublicPart:
    """Open a folder of SA-Co/Gold: the phrases whose objects all three annotators could tell apart.

    Args:
        folder: Has `gold_SUBSET_merged_A_release_test.json` of each subset and annotator, and the images in
            `sa1b_images/` (those of the subset sa1b) and `metaclip_images/` (all others).

    Raises:
        ValueError: If files or images are missing, or a file is damaged.
    """
    phrases, images = list[Phrase](), dict[Path, int]()
    for subset in SUBSETS:
        root = folder / ("sa1b_images" if subset == "sa1b" else "metaclip_images")
        for pair, masks in _read_subset(folder, subset):
            path = root / pair.file_name
            row = images.setdefault(path, len(images))
            phrases.append(Phrase(row, pair.text_input, subset, (pair.height, pair.width), masks))
    paths = list(images)
    state = files_state(folder, [*paths, *(file for subset in SUBSETS for file in _files(folder, subset))])
    examples = Examples(FileImages(paths), state, phrases=phrases)
    return PublicPart(SACO.title, ("phrases",), examples, SACO.address, class_names=tuple(SUBSETS))


def _files(folder: Path, subset: str) -> list[Path]:
    return [folder / f"gold_{subset}_merged_{letter}_release_test.json" for letter in ANNOTATORS]


def _read_subset(folder: Path, subset: str) -> list[tuple[_ImageAndPhrase, list[list[str]]]]:
    """Return the pairs of a subset that are measured, and the run lengths of each annotator's masks."""
    files = _files(folder, subset)
    contents = [read_json(_ANNOTATIONS, file) for file in files]
    first = {pair.id for pair in contents[0].images}
    for file, content in zip(files, contents, strict=True):
        found = len(first & {pair.id for pair in content.images})
        check_count(SACO.title, f"pairs of {file.name}", found, SUBSETS[subset], SACO.address)
    masks = [_masks(content, file) for file, content in zip(files, contents, strict=True)]
    counted = [{pair.id for pair in content.images if pair.is_instance_exhaustive} for content in contents]
    kept = [pair for pair in contents[0].images if all(pair.id in ids for ids in counted)]
    wrong = [
        pair.file_name for pair in kept if ".." in (name := PurePosixPath(pair.file_name)).parts or name.is_absolute()
    ]
    if wrong:
        raise ValueError(f"{files[0]} must list files below its folder, got {wrong[0]!r}.")
    return [(pair, [each.get(pair.id, []) for each in masks]) for pair in kept]


def _masks(content: _Annotations, file: Path) -> dict[int | str, list[str]]:
    """Return the run lengths of the objects of each pair; groups that nobody could tell apart are left out."""
    sizes = {pair.id: (pair.height, pair.width) for pair in content.images}
    found = defaultdict[int | str, list[str]](list)
    for each in content.annotations:
        if sizes.get(each.image_id) != each.segmentation.size:
            raise ValueError(f"{file} must have masks as large as their images, got one of {each.segmentation.size}.")
        if not each.iscrowd:
            found[each.image_id].append(each.segmentation.counts)
    return found
