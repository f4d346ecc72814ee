"""Steps that all ranks skip because a loss or a gradient is not finite, and when there are too many of them."""

from collections.abc import Sequence
from typing import Any

from foundation.interruption import TrainingDivergedError


MAX_SHARE = 0.5
"""Share of skipped steps above which a run is no success. Our choice: "most". Single ones happen in bfloat16, and a
run whose every step fails is given up long before its end."""


class SkippedSteps:
    """Counts skipped steps.

    Args:
        max_in_a_row: After as many without a good one between them the run gives up.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self._in_a_row = self._total = 0

    def add(self, step: int, causes: Sequence[str]) -> str:
        """Count a skipped step and return a line that says so.

        Args:
            step: Its number.
            causes: What was not finite.

        Raises:
            TrainingDivergedError: If it is one too many in a row.
        """
        self._in_a_row += 1
        self._total += 1
        message = f"Step {step} skipped: not finite: {'; '.join(causes)} ({self._in_a_row} in a row)."
        if self._in_a_row >= self.max_in_a_row:
            raise TrainingDivergedError(
                f"{message} Giving up; the last checkpoint is from before. `training.distill --allow-changes "
                "optimizer.learning_rate` goes on from it with another one."
            )
        return message

    def end_row(self) -> None:
        """Note a step that was not skipped."""
        self._in_a_row = 0

    def summary(self, num_steps: int) -> str:
        """Return a line for the end of a run of that many steps; empty if none was skipped.

        Raises:
            TrainingDivergedError: If most were.
        """
        if not self._total:
            return ""
        message = f"{self._total} of {num_steps} steps were skipped as not finite"
        if self._total > MAX_SHARE * num_steps:
            raise TrainingDivergedError(
                f"{message}, more than {MAX_SHARE:.0%}: the student is not exported. The checkpoints are kept. Start "
                "anew without what the skipped steps name, or with a lower `optimizer.learning_rate`."
            )
        return f"{message}."

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, as JSON values."""
        return {"in_a_row": self._in_a_row, "total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._in_a_row, self._total = state["in_a_row"], state["total"]
