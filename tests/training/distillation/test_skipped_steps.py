import pytest

from core.interruption import TrainingDivergedError
from training.distillation.monitoring import SkippedSteps


def test_too_many_in_a_row_end_the_run() -> None:
    skipped = SkippedSteps(max_in_a_row=2)
    assert skipped.add(3, ["loss", "gradient"]) == "Step 3 skipped: not finite: loss; gradient (1 in a row)."
    skipped.end_row()
    assert skipped.add(5, ["loss"]).endswith("(1 in a row).")
    with pytest.raises(TrainingDivergedError, match=r"\(2 in a row\). Giving up; the last checkpoint is from before\."):
        skipped.add(6, ["loss"])


def test_a_run_most_of_whose_steps_were_skipped_is_no_success() -> None:
    skipped = SkippedSteps(max_in_a_row=10)
    assert skipped.summary(8) == ""
    for step in range(4):
        skipped.add(step, ["loss"])
    assert skipped.summary(8) == "4 of 8 steps were skipped as not finite."
    resumed = SkippedSteps(max_in_a_row=10)
    resumed.load_state_dict(skipped.state_dict())
    resumed.add(4, ["loss"])
    with pytest.raises(TrainingDivergedError, match=r"^5 of 8 steps were skipped as not finite, more than 50%: the st"):
        resumed.summary(8)
