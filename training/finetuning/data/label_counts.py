"""Which classes the images of a run show, and what of it will hurt, said before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foundation.errors import first_few
from foundation.tables import markdown, plain_cell


MAX_SHOWN_ROWS = 40  # our choice: a screen; the file in the run's folder has all
MAX_NAMED = 8  # our choice
RARE_RATIO = 20  # our choice: from here on the rarest class is worth a remark


@dataclass(frozen=True)
class ClassCounts:
    """Of one split, by class.

    Attributes:
        num_images: Images that were looked at.
        total: Images that there are.
        images: Images that show a class, `(num_classes,)`.
        labels: How often it was labeled, `(num_classes,)`: more than images where these have several objects.
    """

    num_images: int
    total: int
    images: Tensor
    labels: Tensor


def count_classes(classes: Sequence[Sequence[int]], num_classes: int, total: int | None = None) -> ClassCounts:
    """Count the classes of images, each given by the ids of what it shows; `total` where there are more images."""
    every = torch.tensor([number for image in classes for number in image], dtype=torch.long)
    distinct = torch.tensor([number for image in classes for number in set(image)], dtype=torch.long)
    total = len(classes) if total is None else total
    return ClassCounts(
        len(classes), total, distinct.bincount(minlength=num_classes), every.bincount(minlength=num_classes)
    )


@dataclass(frozen=True)
class LabelCounts:
    """Of both splits.

    Attributes:
        names: Of the classes, in the order of their ids.
        train: Of the training images.
        validation: Of the validation images.
        is_accuracy_measured: Whether images have one class each, and answers are right or wrong.
    """

    names: tuple[str, ...]
    train: ClassCounts
    validation: ClassCounts
    is_accuracy_measured: bool = False

    def table(self, max_rows: int | None = None) -> str:
        """Return a Markdown table, the commonest class first; of too many classes the middle is left out."""
        splits = {"training": self.train, "validation": self.validation}
        columns = {f"{split} images": counts.images for split, counts in splits.items()}
        if any((counts.labels > counts.images).any() for counts in splits.values()):
            columns |= {f"{split} objects": counts.labels for split, counts in splits.items()}
        order = self.train.images.argsort(descending=True, stable=True).tolist()
        rows = [
            [plain_cell(self.names[number]), str(number), *(f"{int(values[number]):,}" for values in columns.values())]
            for number in order
        ]
        if max_rows is not None and len(rows) > max_rows:
            half = max_rows // 2
            left_out = ["...", "", *("" for _ in columns)]
            rows = [*rows[:half], left_out, *rows[-half:]]
        return markdown(["class", "id", *columns], rows, aligned=True)

    def remarks(self) -> list[str]:
        """Return a line for everything that will hurt: classes that are never seen, or never measured, or rare.

        Where accuracy is measured, the first line says what it has to beat.
        """
        in_train, in_validation = self.train.images > 0, self.validation.images > 0
        found = {
            "No image shows": ~in_train & ~in_validation,
            "Only validation images show, so that it is never learned,": ~in_train & in_validation,
            "Only training images show, so that it is never measured,": in_train & ~in_validation,
        }
        lines = [
            f"{what} {first_few([self.names[number] for number in which.nonzero().flatten().tolist()], MAX_NAMED)}."
            for what, which in found.items()
            if which.any()
        ]
        if self.is_accuracy_measured:
            commonest = int(self.train.images.argmax())
            share = int(self.validation.images[commonest]) / self.validation.num_images
            name = self.names[commonest]
            lines.insert(0, f"Always answering {name!r}, the commonest, has an accuracy of {share:.3f}.")
        if any(counts.num_images < counts.total for counts in (self.train, self.validation)):
            lines.append(f"Counted in the first {self.train.num_images:,} images; there may be more classes.")
        occurring = self.train.images[in_train]
        if len(occurring) and occurring.max() >= RARE_RATIO * occurring.min():
            commonest = int(self.train.images.argmax())
            rarest = int(self.train.images.where(in_train, occurring.max()).argmin())
            lines.append(
                f"{self.names[commonest]!r} has {int(self.train.images[commonest]):,} training images and "
                f"{self.names[rarest]!r} {int(self.train.images[rarest]):,}: `sampler` and `class_weights` help rare "
                "classes."
            )
        return lines
