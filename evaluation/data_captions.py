"""Images with captions: the test splits of Flickr30k and COCO by Karpathy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from modeling_radio.core.settings import hash_of
from modeling_radio.evaluation.data import Examples
from modeling_radio.evaluation.public_sets import (
    OTHER_SETS,
    FileImages,
    PublicPart,
    check_count,
    files_state,
    plain,
    read_json,
)


TEST_IMAGES = {"flickr30k": 1000, "coco": 5000}
"""Images of the test splits of https://arxiv.org/abs/1412.2306; as many as in the Hub's data sets
nlphuji/flickr_1k_test_image_text_retrieval and nlphuji/mscoco_2014_5k_test_image_text_retrieval."""
FILES = {"flickr30k": ("dataset_flickr30k.json", "flickr30k-images"), "coco": ("dataset_coco.json", "val2014")}
NUM_CAPTIONS = 5
"""Captions of each image that count; some images of COCO have more, which the usual protocol leaves out."""


@dataclass(frozen=True)
class _Sentence:
    raw: str


@dataclass(frozen=True)
class _KarpathyImage:
    filename: str
    split: str
    sentences: list[_Sentence]


@dataclass(frozen=True)
class _KarpathySplit:
    images: list[_KarpathyImage]


_SPLIT = TypeAdapter(_KarpathySplit)


def open_captions(folder: Path, name: str) -> PublicPart:
    """Open a folder of Flickr30k or COCO.

    Args:
        folder: Has Karpathy's JSON file, and `flickr30k-images/` or `val2014/`.
        name: "flickr30k" or "coco".

    Raises:
        ValueError: If images are missing, or the file is damaged.
    """
    origin, (file_name, images) = OTHER_SETS[name], FILES[name]
    entries = [entry for entry in read_json(_SPLIT, folder / file_name).images if entry.split == "test"]
    check_count(origin.title, "test images", len(entries), TEST_IMAGES[name], origin.address)
    paths = [folder / images / plain(entry.filename, folder / file_name) for entry in entries]
    captions = [[sentence.raw for sentence in entry.sentences][:NUM_CAPTIONS] for entry in entries]
    if not all(captions):
        raise ValueError(f"{folder / file_name} must have captions of each test image.")
    state = files_state(folder, paths)
    examples = Examples(
        FileImages(paths), f"{state} {hash_of({'texts': captions})}", captions=captions, own_fingerprint=state
    )
    return PublicPart(origin.title, ("captions",), examples, origin.address)
