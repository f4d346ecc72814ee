"""What a student learns from in one forward pass, and who provides it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from training.views.batches import Batch


class Target(NamedTuple):
    """One teacher's answer for a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None.
        features: `(batch, feature_dim, rows, cols)`, not standardized.
        shift: `(batch, 2)` rows and columns in student patches: the teacher's crop minus the student's; None
            if both show the same.
        all_shifts: `(global batch, 2)` such shifts of all images that are trained together, over all ranks and
            accumulated parts; None where `shift` is.
    """

    summary: Tensor | None
    features: Tensor
    shift: Tensor | None
    all_shifts: Tensor | None = None


class AverageView(NamedTuple):
    """What the student's moving average sees of a batch, to be compared with the student.

    Attributes:
        pixel_values: `(batch, 3, size, size)`, colored as the student's images.
        shift: `(batch, 2)` rows and columns in student patches: this crop minus the student's.
    """

    pixel_values: Tensor
    shift: Tensor


class Example(NamedTuple):
    """What a student learns from in one forward pass.

    Attributes:
        pixel_values: `(batch, 3, size, size)`, RGB in [0, 1].
        targets: The teachers' answers, by name.
        average: Another crop for the moving average, in steps with a MESA loss.
    """

    pixel_values: Tensor
    targets: dict[str, Target]
    average: AverageView | None = None


class TargetSource(Protocol):
    """Turns planned batches into examples, in order."""

    def examples(self, plan: Callable[[], Iterable[Batch]]) -> Iterator[tuple[Batch, Example]]:
        """Yield every batch of a plan with its example; `plan()` may be called more than once."""

    def state_dict(self) -> dict[str, Any]:
        """Return how far this rank has read the data, up to the last batch that was yielded, as JSON values."""

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Resume from what `state_dict` returned on each rank."""
