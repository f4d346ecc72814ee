from pathlib import Path

import pytest
import torch
from driven_weights import batch_of
from small_recipes import small_recipe
from tiny_distillation import PACKED, SPLIT_SETTINGS, assert_same_tensors, distil, last_state

from training.distillation.saving.tensor_files import SavedTensors
from training.distillation.watching.run_history import RunHistory
from training.losses.contrastive import CONTRASTIVE_LOSSES
from training.recipe import RecipeError
from training.targets.contrasts import Contrasts, EmbeddingBank
from training.targets.examples import Example, Target


CPU = torch.device("cpu")
ON = ("contrastive={weight: 0.1, bank_size: 13}", "partitions.low.sizes_px=[32]", "checkpoints.every_steps=8")
QKV = "student/radio_model.model.blocks.0.attn.qkv.weight"


def rows_of(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 2).clone()


def test_the_first_in_is_the_first_out() -> None:
    bank = EmbeddingBank(4, 2, CPU)
    bank.add(rows_of(1, 2, 3))
    assert bank.filled[:, 0].tolist() == [1, 2, 3]
    bank.add(rows_of(4, 5))
    assert sorted(bank.filled[:, 0].tolist()) == [2, 3, 4, 5]
    bank.add(rows_of(6, 7, 8, 9, 10, 11))
    assert sorted(bank.filled[:, 0].tolist()) == [8, 9, 10, 11]
    torch.testing.assert_close(bank.mean_with(rows_of(12))[0], bank.total.new_tensor(6.5))


def test_a_bank_takes_nothing_that_is_not_finite() -> None:
    bank = EmbeddingBank(4, 2, CPU)
    bank.add(rows_of(1, float("nan"), 3))
    assert bank.filled[:, 0].tolist() == [1, 3]


def test_no_bank_at_all() -> None:
    bank = EmbeddingBank(0, 2, CPU)
    bank.add(rows_of(1, 2))
    assert bank.filled.shape == (0, 2)


class Shape:
    summary_dim, feature_dim = 3, 3


def test_images_are_found_among_the_candidates_of_all_parts() -> None:
    recipe = small_recipe("a", contrastive={"weight": 1.0, "kind": "info_nce", "bank_size": 8})
    contrasts = Contrasts(recipe, {"a": Shape()}, CPU)
    summaries = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    parts = [
        (batch_of(0, rows, 5, "a"), Example([], {"a": Target(summaries[list(rows)], [], None)}))
        for rows in ((3, 4), (0, 1, 2))
    ]
    contrasts.begin_step(parts)
    found = []
    for batch, _ in parts:
        own = summaries[list(batch.rows)]
        found.append(contrasts.losses("a", batch, own, own))
    contrasts.end_step()
    contrasts.begin_step([(batch_of(0, (0, 1, 2, 3, 4), 5, "a"), Example([], {"a": Target(summaries, [], None)}))])
    assert len(contrasts.banks["a"].filled) == 5
    assert max(float(each.max()) for each in found) < 0.7  # less than one wrong candidate would give


def test_no_summary_is_refused(recipe_file: str, tiny_world: None) -> None:
    with pytest.raises(RecipeError, match=r"^`contrastive.weight` must be 0 where no teacher has a summary"):
        distil(recipe_file, "run", *ON, "teachers.semantic.summary_weight=0")


@pytest.mark.usefixtures("one_thread", "tiny_world")
class TestRuns:
    def test_weight_0_is_no_contrast_bit_for_bit(self, recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        distil(recipe_file, "off", *ON, "contrastive.weight=0")
        monkeypatch.setattr("training.distillation.trainer.build_contrasts", lambda *_: None)
        distil(recipe_file, "none", *ON)
        assert_same_tensors(last_state("off"), last_state("none"))

    @pytest.mark.parametrize("kind", CONTRASTIVE_LOSSES)
    def test_each_kind_acts(self, recipe_file: str, kind: str) -> None:
        distil(recipe_file, "off", *ON, "contrastive.weight=0")
        distil(recipe_file, "on", *ON, f"contrastive.kind={kind}")
        assert not torch.equal(last_state("off")[QKV], last_state("on")[QKV])
        assert "contrastive/semantic" in RunHistory(Path("on/history.jsonl"), 8).series()

    @pytest.mark.parametrize("middle", [2, 6])  # the bank of 13 is full after four steps
    def test_resume_is_exact_while_the_bank_fills_and_later(self, recipe_file: str, middle: int) -> None:
        distil(recipe_file, "whole", *ON)
        distil(recipe_file, "parts", *ON, stop_at=middle)
        distil(recipe_file, "parts", *ON)
        assert_same_tensors(last_state("whole"), last_state("parts"))
        banks = [SavedTensors(Path(run, "checkpoints/step_00000008"), "contrasts") for run in ("whole", "parts")]
        assert_same_tensors(*({key: bank.read(key) for key in bank.shapes} for bank in banks))
        assert int(banks[0].read("banks.semantic.num_added")) == 32

    @pytest.mark.parametrize("others", [(), PACKED, ("balancing={method: teacher_dropping, ramp_steps: 0}",)])
    def test_accumulated_parts_equal_the_whole_batch(self, recipe_file: str, others: tuple[str, ...]) -> None:
        settings = (*ON, *SPLIT_SETTINGS, *others, "contrastive.weight=1", "schedule.num_steps=5")
        distil(recipe_file, "whole", *settings)
        distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=2")
        whole, parts = last_state("whole", 5), last_state("parts", 5)
        for key in whole:
            torch.testing.assert_close(parts[key], whole[key], rtol=1e-3, atol=1e-5)
