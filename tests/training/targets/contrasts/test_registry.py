"""Every kind of contrastive loss in runs of the tiny student and teachers."""

from pathlib import Path
from typing import get_args

import pytest
import tiny_distillation as tiny
import torch
from tiny_distillation import PACKED, SPLIT_SETTINGS, assert_same_tensors, distil, last_state

from training.distillation.saving.tensor_files import SavedTensors
from training.distillation.watching.run_history import RunHistory
from training.losses.contrastive import SUMMARY_CONTRASTS
from training.recipe import ContrastiveRecipe, RecipeError
from training.teachers.answers import TeacherOutput
from training.teachers.registry import TEACHER_KINDS


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

TWELVE = ("schedule={num_steps: 12, warmup_steps: 2}", "partitions.low.sizes_px=[32]", "checkpoints.every_steps=12")
BANK = "contrastive={weight: 0.1, bank_size: 13}"
EIGHT = ("partitions.low.sizes_px=[32]", "checkpoints.every_steps=8")
QKV = "student/radio_model.model.blocks.0.attn.qkv.weight"
KINDS = get_args(ContrastiveRecipe.model_fields["kind"].annotation)
DENSE = "contrastive={weight: 1.0, kind: dense}"
PARTITIONS = (
    "partitions=[{name: low, sizes_px: [32, 48], batch_size: 3},"
    " {name: high, sizes_px: [64], batch_size: 2, teachers: [semantic]}]"
)


def test_recipes_and_losses_name_the_same_kinds() -> None:
    assert (*SUMMARY_CONTRASTS, "dense") == KINDS


def test_no_summary_is_refused(recipe_file: str) -> None:
    with pytest.raises(RecipeError, match=r"^`contrastive.weight` must be 0 where no teacher has a summary"):
        distil(recipe_file, "run", BANK, "teachers.semantic.summary_weight=0")


def test_no_dense_loss_is_refused(recipe_file: str) -> None:
    without = (f"teachers.{name}.feature_weight=0" for name in ("semantic", "segmenter"))
    with pytest.raises(RecipeError, match=r"^`contrastive.weight` must be 0 where no teacher has a dense loss"):
        distil(recipe_file, "run", DENSE, *without)


def test_weight_0_is_no_contrast_bit_for_bit(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    distil(recipe_file, "off", *EIGHT, "contrastive.weight=0")
    monkeypatch.setattr("training.distillation.trainer.build_contrasts", lambda *_: None)
    distil(recipe_file, "none", *EIGHT, BANK)
    assert_same_tensors(last_state("off"), last_state("none"))


def test_every_kind_acts_in_12_steps_at_its_defaults(recipe_file: str) -> None:
    distil(recipe_file, "off", *TWELVE)
    for kind in KINDS:
        distil(recipe_file, kind, *TWELVE, "contrastive.weight=0.1", f"contrastive.kind={kind}")
    weights = [last_state(run, 12)[QKV] for run in ("off", *KINDS)]
    assert all(not torch.equal(one, other) for place, one in enumerate(weights) for other in weights[:place])
    names = {kind: set(RunHistory(Path(kind, "history.jsonl"), 12).series()) for kind in KINDS}
    assert "contrastive/semantic" in names["relational"] & names["info_nce"]
    assert {"dense_contrastive/semantic", "dense_contrastive/segmenter"} <= names["dense"]


@pytest.mark.parametrize("middle", [2, 6])  # the bank of 13 is full after four steps
def test_resume_is_exact_while_the_bank_fills_and_later(recipe_file: str, middle: int) -> None:
    distil(recipe_file, "whole", *EIGHT, BANK)
    distil(recipe_file, "parts", *EIGHT, BANK, stop_at=middle)
    distil(recipe_file, "parts", *EIGHT, BANK)
    assert_same_tensors(last_state("whole"), last_state("parts"))
    banks = [SavedTensors(Path(run, "checkpoints/step_00000008"), "contrasts") for run in ("whole", "parts")]
    assert_same_tensors(*({key: bank.read(key) for key in bank.shapes} for bank in banks))
    assert int(banks[0].read("banks.semantic.num_added")) == 32


class FailsOnce(tiny.TinyTeacher):
    """Gives NaN in its fifth batch: two are for calibration."""

    num_batches = 0

    def encode(self, pixel_values: torch.Tensor) -> TeacherOutput:
        self.num_batches += 1
        output = super().encode(pixel_values)
        assert output.summary is not None
        return output._replace(summary=output.summary * (float("nan") if self.num_batches == 5 else 1))


def test_nothing_of_a_step_that_is_skipped_enters_a_bank(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEACHER_KINDS, "fails_once", FailsOnce)
    distil(recipe_file, "run", *EIGHT, "contrastive.weight=0.1", "teachers.semantic.kind=fails_once")
    bank = SavedTensors(Path("run/checkpoints/step_00000008"), "contrasts")
    assert int(bank.read("banks.semantic.num_added")) == 7 * 4
    assert torch.isfinite(bank.read("banks.semantic.rows")).all()
    assert torch.isfinite(bank.read("banks.semantic.total")).all()


def test_resume_of_the_dense_kind_is_exact(recipe_file: str) -> None:
    distil(recipe_file, "whole", *EIGHT, DENSE, PARTITIONS)
    distil(recipe_file, "parts", *EIGHT, DENSE, PARTITIONS, stop_at=5)
    distil(recipe_file, "parts", *EIGHT, DENSE, PARTITIONS)
    assert_same_tensors(last_state("whole"), last_state("parts"))


@pytest.mark.parametrize("kind", ["relational", "dense"])
@pytest.mark.parametrize("others", [(), PACKED, ("balancing={method: teacher_dropping, ramp_steps: 0}",)])
def test_accumulated_parts_equal_the_whole_batch(recipe_file: str, kind: str, others: tuple[str, ...]) -> None:
    settings = (*EIGHT, *SPLIT_SETTINGS, *others, BANK, f"contrastive.kind={kind}", "contrastive.weight=1")
    distil(recipe_file, "whole", *settings, "schedule.num_steps=5")
    distil(recipe_file, "parts", *settings, "schedule.num_steps=5", "partitions.low.accumulation_steps=2")
    whole, parts = last_state("whole", 5), last_state("parts", 5)
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-3, atol=1e-5)
