"""The contrastive loss, its bank, and runs of the tiny student and teachers with it."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_distillation as tiny
import torch
from small_recipes import small_recipe
from tiny_distillation import PACKED, SPLIT_SETTINGS, assert_same_tensors, distil, last_state
from torch.nn import functional as F
from two_forks import run_two_forks

from modeling_radio.core.ranks import rank_and_count
from modeling_radio.training.balancing.contrastive import (
    TEMPERATURE,
    EmbeddingBank,
    ImageInStep,
    SummaryContrastiveLoss,
    centered,
    gather_step,
    relational_losses,
)
from modeling_radio.training.distillation.checkpoints import SavedTensors
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.targets.examples import Example, Target
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.training.teachers.registry import TEACHER_KINDS
from modeling_radio.training.views.plan import PlannedBatch
from modeling_radio.training.views.shapes import Grid, ImageShape


CPU = torch.device("cpu")


def cone(num_images: int) -> torch.Tensor:
    """Summaries within a few degrees of each other."""
    generator = torch.Generator().manual_seed(0)
    return 5 * torch.ones(16) + 0.2 * torch.randn(num_images, 16, generator=generator)


def test_two_candidates_by_hand() -> None:
    candidates = torch.eye(2)
    student, teacher = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]])
    p, q = ((vector @ candidates.T / TEMPERATURE).softmax(1)[0] for vector in (teacher, student))
    torch.testing.assert_close(relational_losses(student, teacher, candidates)[0], (p * (p / q).log()).sum())


def test_near_duplicates_stay_together() -> None:
    teacher = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-3, 0.0], [0.0, 0.0, 1.0]]), dim=-1)
    student = teacher.clone().requires_grad_()
    losses = relational_losses(F.normalize(student, dim=-1), teacher, teacher)
    (slopes,) = torch.autograd.grad(losses[0], student)
    assert losses.abs().max() < 1e-5
    assert slopes[0].norm() < 1e-4


def test_centered_summaries_of_a_cone_spread_out_whatever_their_length() -> None:
    summaries = cone(300)
    plain = F.normalize(summaries, dim=-1)
    own = centered(summaries, plain.mean(0))
    assert (plain @ plain.T).mean() > 0.99
    assert (own @ own.T).mean().abs() < 0.05
    torch.testing.assert_close(own.norm(dim=1), torch.ones(300))
    torch.testing.assert_close(centered(9 * summaries, plain.mean(0)), own, rtol=1e-3, atol=1e-3)


def rows_of(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 2).clone()


def test_the_first_in_is_the_first_out() -> None:
    bank, none = EmbeddingBank(4, 2, CPU), EmbeddingBank(0, 2, CPU)
    for added, kept in (((1, 2, 3), [1, 2, 3]), ((4, 5), [2, 3, 4, 5]), ((6, 7, 8, 9, 10, 11), [8, 9, 10, 11])):
        bank.add(rows_of(*added))
        none.add(rows_of(*added))
        assert sorted(bank.filled[:, 0].tolist()) == kept
        assert none.filled.shape == (0, 2)
    torch.testing.assert_close(bank.mean_with(rows_of(12))[0], bank.total.new_tensor(6.5))


def batch_of(rows: tuple[int, ...], total: int) -> PlannedBatch:
    shapes = (ImageShape(Grid(2, 2), Grid(2, 2)),) * len(rows)
    return PlannedBatch(0, 0, "low", shapes, rows, rows, total, 1.0, ("a",))


def example_of(summaries: torch.Tensor) -> Example:
    return Example([], {"a": Target(summaries, [], [])})


def contrastive_of(bank_size: int) -> SummaryContrastiveLoss:
    recipe = small_recipe("a", contrastive={"weight": 1.0, "bank_size": bank_size})
    return SummaryContrastiveLoss(recipe, {"a": SimpleNamespace(summary_dim=3, feature_dim=3)}, CPU)


def test_summaries_of_earlier_steps_are_candidates_too() -> None:
    draws = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    earlier, teacher, student = F.normalize(draws, dim=-1).unbind(0)
    batch, losses = batch_of((0, 1, 2, 3), 4), {}
    for size in (8, 0):
        contrastive = contrastive_of(size)
        contrastive.begin_step(0, [(batch, example_of(earlier))])
        contrastive.end_step({}, is_skipped=False)
        contrastive.begin_step(1, [(batch, example_of(teacher))])
        losses[size] = contrastive.losses("a", student, Target(teacher, [], []))
        candidates = torch.cat([teacher, earlier[: 4 if size else 0]])
        mean = torch.cat([teacher, earlier]).mean(0)
        torch.testing.assert_close(
            losses[size], relational_losses(*(centered(each, mean) for each in (student, teacher, candidates)))
        )
    assert (losses[8] - losses[0]).abs().min() > 1e-3


ROWS: dict[ImageInStep, float] = {(0, 0): 1.0, (0, 1): 2.0, (0, 2): 3.0, (1, 0): 4.0}


def gather_part(split: list[list[ImageInStep]]) -> None:
    images = split[rank_and_count()[0]]
    rows = torch.tensor([ROWS[image] for image in images])[:, None]
    assert gather_step({"t": images}, {"t": rows})["t"][:, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("split", [[[(1, 0), (0, 1)], [(0, 2), (0, 0)]], [[(0, 0), (0, 1), (0, 2), (1, 0)], []]])
def test_ranks_have_the_same_rows_however_they_are_divided(split: list[list[ImageInStep]], tmp_path: Path) -> None:
    run_two_forks(partial(gather_part, split), tmp_path)
    gather_part([[image for part in split for image in part]])  # a single process


class FailsOnce(tiny.TinyTeacher):
    """Gives NaN in its fifth batch: two are for calibration."""

    num_batches = 0

    def encode(self, pixel_values: torch.Tensor) -> TeacherOutput:
        self.num_batches += 1
        output = super().encode(pixel_values)
        assert output.summary is not None
        return output._replace(summary=output.summary * (float("nan") if self.num_batches == 5 else 1))


def saved_bank(output: str) -> dict[str, torch.Tensor]:
    saved = SavedTensors(Path(output, "checkpoints/step_00000008"), "contrasts")
    return {key: saved.read(key) for key in saved.shapes}


BANK = "contrastive={weight: 0.1, bank_size: 13}"
EIGHT = ("partitions.low.sizes_px=[32]", "checkpoints.every_steps=8")


@pytest.mark.usefixtures("one_thread", "tiny_world")
class TestRuns:
    def test_no_summary_is_refused(self, recipe_file: str) -> None:
        with pytest.raises(RecipeError, match=r"`contrastive\.weight`"):
            distil(recipe_file, "run", BANK, "teachers.semantic.summary_weight=0")

    def test_weight_0_is_no_contrast_bit_for_bit(self, recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        distil(recipe_file, "off", *EIGHT, "contrastive.weight=0")
        distil(recipe_file, "on", *EIGHT, BANK)
        monkeypatch.setattr("modeling_radio.training.balancing.contrastive.SummaryContrastiveLoss", lambda *_: None)
        distil(recipe_file, "none", *EIGHT, BANK)
        assert_same_tensors(last_state("off"), last_state("none"))
        key = "student/radio_model.model.blocks.0.attn.qkv.weight"
        assert not torch.equal(last_state("off")[key], last_state("on")[key])

    def test_resume_is_exact_while_the_bank_fills_and_later(self, recipe_file: str) -> None:
        distil(recipe_file, "whole", *EIGHT, BANK)
        for parts, middle in (("filling", 2), ("full", 6)):  # the bank of 13 is full after four steps
            distil(recipe_file, parts, *EIGHT, BANK, stop_at=middle)
            distil(recipe_file, parts, *EIGHT, BANK)
            assert_same_tensors(last_state("whole"), last_state(parts))
            assert_same_tensors(saved_bank("whole"), saved_bank(parts))
        assert int(saved_bank("whole")["banks.semantic.num_added"]) == 32

    def test_nothing_of_a_skipped_step_enters_a_bank(self, recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(TEACHER_KINDS, "fails_once", FailsOnce)
        distil(recipe_file, "run", *EIGHT, "contrastive.weight=0.1", "teachers.semantic.kind=fails_once")
        bank = saved_bank("run")
        assert int(bank["banks.semantic.num_added"]) == 7 * 4
        assert all(torch.isfinite(tensor).all() for tensor in bank.values())

    def test_accumulated_parts_equal_the_whole_batch(self, recipe_file: str) -> None:
        settings = (*EIGHT, *SPLIT_SETTINGS, *PACKED, BANK, "contrastive.weight=1", "schedule.num_steps=5")
        distil(recipe_file, "whole", *settings)
        distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=2")
        whole, parts = last_state("whole", 5), last_state("parts", 5)
        for key in whole:
            torch.testing.assert_close(parts[key], whole[key], rtol=1e-3, atol=1e-5)
