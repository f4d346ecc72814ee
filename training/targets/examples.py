"""What a student learns from in one forward pass, and who provides it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from training.views.plan import Batch


class Target(NamedTuple):
    """One teacher's answer for a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None.
        features: For each group of the batch `(images, feature_dim, rows, cols)`, not standardized.
        shifts: For each group `(images, 2)` rows and columns in student patches: the teacher's crop minus the
            student's; None if both show the same.
        shown: For each group `(images, rows, cols)` bool, which cells show nothing but the image; None if all do.
    """

    summary: Tensor | None
    features: list[Tensor]
    shifts: list[Tensor] | None
    shown: list[Tensor] | None = None

    def is_finite(self) -> bool:
        """Return whether no number of the answer is infinite or none."""
        parts = self.features if self.summary is None else [self.summary, *self.features]
        return all(bool(part.isfinite().all()) for part in parts)


class AverageView(NamedTuple):
    """What the student's moving average sees of a batch, to be compared with the student.

    Attributes:
        pixel_values: As the student's images, and colored like them.
        shifts: For each group `(images, 2)` rows and columns in student patches: this crop minus the student's.
    """

    pixel_values: list[Tensor]
    shifts: list[Tensor]


class Example(NamedTuple):
    """What a student learns from in one forward pass.

    Attributes:
        pixel_values: For each group of the batch, `Batch.groups`, RGB in [0, 1], `(images, 3, height, width)`.
        targets: The teachers' answers, by name; where taps ask for them, features on a teacher's way too, without a
            summary, by `training.recipe_sections.target_name`.
        average: Another crop for the moving average, in steps with a MESA loss.
        extents: For each group what of the student's crops is image, as `extent` of `align_to_teacher`; None if all is,
            and of the other crops, too.
    """

    pixel_values: list[Tensor]
    targets: dict[str, Target]
    average: AverageView | None = None
    extents: list[Tensor] | None = None


class TargetSource(Protocol):
    """Turns planned batches into examples, in order."""

    def examples(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[tuple[Batch, Example]]:
        """Yield every batch of a plan with its example; `plan()` may be called more than once."""

    def student_images(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[list[Tensor]]:
        """Yield of every batch of a plan what the student sees, as `Example.pixel_values`; no teacher is asked."""

    def state_dict(self) -> dict[str, Any]:
        """Return how far this rank has read the data, up to the last batch that was yielded, as JSON values."""

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Resume from what `state_dict` returned on each rank."""
