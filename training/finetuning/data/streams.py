"""Labeled images that are read in order while training goes on, so that they need no room on the disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import tqdm

from foundation.seeds import derive_seed
from training.data.decoding import EncodedImage, SkippedImages, UnusableImageError, load_picture
from training.data.labeled.labels import LabelReader
from training.data.sources import ImageColumn


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHUFFLED_TOGETHER = 1000  # our choice: encoded images that wait in memory, some 100 MB; files are shuffled as wholes
FILES_AT_ONCE = 1  # `datasets` mixes ten by default, with threads whose end takes 5 s in each pass


@dataclass(frozen=True)
class LabeledStream:
    """Endless passes through the training images of a source, in another order each time.

    What a reader gets depends on the seed, its rank and its worker alone, so that a resumed run reads it again.

    Attributes:
        images: A column of encoded images, and one of labels.
        column: Reads the images.
        labels: Reads the labels.
        seed: Decides the order.
        rank: Of this process.
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
        """How many workers of a rank can read side by side: one for each of its files."""
        return self._of_rank(self.images).num_shards

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of this rank, and in a worker those of this worker.

        `image` is as Pillow opens it, `target` as a task reads it. Images that cannot be opened are left out, and named
        in the log.

        Raises:
            ValueError: If a label is missing or none of the classes, or no image can be opened.
        """
        skipped = SkippedImages()
        for number_of_pass in itertools.count():
            seed = derive_seed(self.seed, "pass", number_of_pass) % 2**32
            shuffled = self.images.shuffle(seed, buffer_size=SHUFFLED_TOGETHER, max_buffer_input_shards=FILES_AT_ONCE)
            num_read = 0
            for index, row in enumerate(self._of_rank(shuffled)):
                image = self.column.read(row, f"training image {index} of pass {number_of_pass}")
                try:
                    picture = load_picture(image)
                except UnusableImageError as error:
                    skipped.add(image.name, error)
                    continue
                num_read += 1
                yield {"image": picture, "target": self.labels.read(row, image.name)}
            if num_read == 0:
                raise ValueError(
                    f"None of the training images of {self.column.source!r} can be opened; the log names them."
                )

    def _of_rank(self, images: IterableDataset) -> IterableDataset:
        """Return the files of this rank, or every n-th image where files cannot be shared out evenly."""
        from datasets.distributed import split_dataset_by_node

        return split_dataset_by_node(images, self.rank, self.num_ranks)


def collect(images: IterableDataset, column: ImageColumn, labels: LabelReader) -> Dataset:
    """Return validation images, which are read again and again, as a table in memory: encoded, with their labels read.

    Args:
        images: A column of encoded images, and one of labels.
        column: Reads the images.
        labels: Reads the labels.

    Returns:
        Columns `image` and `target`.

    Raises:
        ValueError: If a label is missing or none of the classes, or no image can be opened.
    """
    from datasets import Dataset, Features, Image, List, Value

    kept, skipped = {"image": [], "target": []}, SkippedImages()
    for index, row in enumerate(tqdm(images, desc="validation images", unit="image")):
        image = column.read(row, f"validation image {index}")
        if skipped.check(image, min_side_px=1):
            kept["image"].append(_stored(image))
            kept["target"].append(labels.read(row, image.name))
    if not kept["image"]:
        raise ValueError(f"None of the validation images of {column.source!r} can be opened; the log names them.")
    target = {
        "regression": Value("float64"),
        "multi_label_classification": List(Value("int64")),
        "single_label_classification": Value("int64"),
    }[labels.problem_type]
    return Dataset.from_dict(kept, features=Features({"image": Image(), "target": target}))


def _stored(image: EncodedImage) -> dict[str, Any]:
    """Return an encoded image as `datasets` stores it."""
    is_file = isinstance(image.content, Path)
    return {"bytes": None if is_file else image.content, "path": str(image.content) if is_file else None}
