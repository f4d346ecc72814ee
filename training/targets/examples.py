"""The data that the student learns from in one forward pass, and the interface of its sources."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from modeling_radio.training.views.plan import PlannedBatch


class Target(NamedTuple):
    """One teacher's output for a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None.
        features: For each group of the batch `(images, feature_dim, rows, cols)`, not standardized.
        shifts: For each group `(images, 2)` rows and columns in student patches: the teacher's crop minus the
            student's; None if both show the same.
        shown: For each group `(images, rows, cols)` bool: positions that show nothing but the image; None if all do.
    """

    summary: Tensor | None
    features: list[Tensor]
    shifts: list[Tensor] | None
    shown: list[Tensor] | None = None

    def is_finite(self) -> bool:
        """Return whether all numbers are finite."""
        parts = self.features if self.summary is None else [self.summary, *self.features]
        return all(bool(part.isfinite().all()) for part in parts)


class Example(NamedTuple):
    """Images of a batch and the teachers' outputs for them.

    Attributes:
        pixel_values: For each group of the batch, `PlannedBatch.groups`, RGB in [0, 1], `(images, 3, height, width)`.
        targets: The teachers' outputs, by name. For heads that want features of a teacher's inner blocks also these,
            without a summary, by `modeling_radio.training.recipes.sections.target_name`.
        ema_pixels: Other crops for the student's moving average, as `pixel_values` and with the same changes of
            color; None in steps without a MESA loss.
        ema_shifts: For each group `(images, 2)` rows and columns in student patches: the average's crop minus the
            student's.
        extents: For each group the part of the student's crops that shows the image, as `extent` of
            `align_to_teacher`; None if no crop reaches beyond it.
    """

    pixel_values: list[Tensor]
    targets: dict[str, Target]
    extents: list[Tensor] | None = None
    ema_pixels: list[Tensor] | None = None
    ema_shifts: list[Tensor] | None = None


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
