"""The data that the student learns from in one forward pass, and the interface of its sources."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from modeling_radio.training.losses.alignment import Alignment
from modeling_radio.training.views.plan import PlannedBatch


class OwnImages(NamedTuple):
    """Images of a batch that a teacher sees, where it does not see all.

    Attributes:
        places: `(images,)` integers, their places in the batch.
        groups: Number of each group of the batch with such images, and their places in it, `(images,)` integers.
        weight: Factor of the mean over these images. With it, means of parts and ranks, weighed as those of all images,
            add up to the sum over all images that the teacher sees, divided by their expected number.
    """

    places: Tensor
    groups: list[tuple[int, Tensor]]
    weight: float

    @classmethod
    def of(cls, batch: PlannedBatch, teacher: str) -> "OwnImages | None":
        """Return the images of a batch that a teacher sees, on the CPU; None if it sees all."""
        if batch.seen is None:
            return None
        places, share = batch.seen[teacher]
        of_groups = [
            (number, [place - group.start for place in places if group.start <= place < group.stop])
            for number, (_, group) in enumerate(batch.groups)
        ]
        groups = [(number, torch.tensor(own)) for number, own in of_groups if own]
        weight = len(places) / len(batch) / share if places else 0.0
        return cls(torch.tensor(places, dtype=torch.long), groups, weight)


class Target(NamedTuple):
    """One teacher's output for a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None.
        features: Maps of each group of the batch, `(images, feature_dim, rows, cols)`, not standardized.
        alignments: Places in each group where the student's maps and these show the same.
        images: The images, and groups, that it is for; None for all of the batch.
    """

    summary: Tensor | None
    features: list[Tensor]
    alignments: list[Alignment]
    images: OwnImages | None = None

    @property
    def shown(self) -> list[Tensor] | None:
        """Masks of each group, `(images, rows, cols)` bool: positions that only show the image; None if all do."""
        return [each.shown for each in self.alignments if each.shown is not None] or None

    def is_finite(self) -> bool:
        """Return whether all numbers are finite."""
        parts = self.features if self.summary is None else [self.summary, *self.features]
        return all(bool(part.isfinite().all()) for part in parts)


class Example(NamedTuple):
    """Images of a batch and the teachers' outputs for them.

    Attributes:
        pixel_values: Pixels of each group of the batch, `PlannedBatch.groups`, in [0, 1], `(images, channels, height,
            width)`; RGB unless the recipe has `data.num_channels`.
        targets: The outputs of teachers that see any of the images, by name.
        ema_pixels: Other crops for the student's moving average, as `pixel_values` and with the same changes of
            color; None in steps without a MESA loss.
        ema_alignments: Places in each group where the backbone's maps of the student and of its average show the same.
    """

    pixel_values: list[Tensor]
    targets: dict[str, Target]
    ema_pixels: list[Tensor] | None = None
    ema_alignments: list[Alignment] | None = None


class TargetSource(Protocol):
    """Turns planned batches into examples, in order."""

    def examples(self, plan: Callable[[], Iterable[PlannedBatch]]) -> Iterator[tuple[PlannedBatch, Example]]:
        """Yield every batch of a plan with its example; `plan()` may be called more than once."""

    def student_images(self, plan: Callable[[], Iterable[PlannedBatch]]) -> Iterator[list[Tensor]]:
        """Yield the student's images of every batch of a plan, as `Example.pixel_values`, without any teacher."""

    def state_dict(self) -> dict[str, Any]:
        """Return how far this rank has read the data, up to the last batch that was yielded, as JSON values."""

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Resume from the states that `state_dict` returned on each rank."""
