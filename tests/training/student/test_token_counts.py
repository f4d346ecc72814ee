"""Nested dropout: its distributions, that it acts in a run, and that it follows from the step alone."""

from pathlib import Path

import pytest
import tiny_distillation as tiny
import torch

from modeling_radio import RadioConfig
from training.distillation.trainer import Distiller
from training.recipe import RecipeError, load_recipe
from training.student.packing import NUM_DRAWS, check_merging, counts_from


pytestmark = pytest.mark.usefixtures("one_thread")
MERGED = ("student.config.downscale_levels=[1]", "student.config.decoder_depth=1", "partitions.low.sizes_px=[64]")


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    tiny.install_tiny_world(monkeypatch)
    Path("recipe.yaml").write_text("name: tiny\n" + tiny.RECIPE)
    return "recipe.yaml"


def shares(draw: str, available: int = 101) -> torch.Tensor:
    draws = torch.rand(20_000, NUM_DRAWS, generator=torch.Generator().manual_seed(0))
    return (torch.tensor(counts_from(draw, draws, available)).double() - 1) / (available - 1)


def test_triangular_has_the_density_two_minus_two_x() -> None:
    values = shares("triangular")
    assert values.mean().item() == pytest.approx(1 / 3, abs=0.01)
    assert (values < 0.5).double().mean().item() == pytest.approx(0.75, abs=0.01)


def test_triangular_is_the_published_formula() -> None:
    draws = torch.tensor([0.0, 0.25, 0.999, 0.5])[:, None].expand(-1, NUM_DRAWS)
    assert counts_from("triangular", draws, 256) == [256, 129, 1, round((1 - 0.5**0.5) * 255) + 1]


def test_uniform_and_beta() -> None:
    assert shares("uniform").mean().item() == pytest.approx(0.5, abs=0.01)
    values = shares("beta")
    assert values.mean().item() == pytest.approx(1 / 3, abs=0.01)  # of Beta(2, 4)
    histogram = torch.histc(values, 10, 0, 1)
    assert histogram.argmax().item() == 2  # a quarter


@pytest.mark.parametrize("draw", ["triangular", "uniform", "beta", "fixed"])
@pytest.mark.parametrize("available", [1, 2, 7])
def test_all_are_between_one_and_all(draw: str, available: int) -> None:
    counts = set(counts_from(draw, torch.rand(5000, NUM_DRAWS), available))
    assert counts <= ({available} if draw == "fixed" else set(range(1, available + 1)))
    assert len(counts) > 1 or draw == "fixed" or available == 1


def seen_counts(monkeypatch: pytest.MonkeyPatch) -> list:
    """Record what each pass of a run was told."""
    from training.distillation import step

    seen, answer_groups = [], step.answer_groups

    def record(student, groups, patch_size, **options):
        if "draws" in options:
            seen.append(options.get("num_tokens"))
        return answer_groups(student, groups, patch_size, **options)

    monkeypatch.setattr(step, "answer_groups", record)
    return seen


def test_counts_follow_from_the_step_whatever_part_an_image_is_in(recipe_file: str, monkeypatch) -> None:
    seen = seen_counts(monkeypatch)
    settings = (*MERGED, "student.num_tokens=triangular", "schedule.num_steps=3")
    tiny.distil(recipe_file, "whole", *settings)
    whole = list(seen)
    assert len({count for counts in whole for count in counts}) > 1
    seen.clear()
    tiny.distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=2")
    assert [first + second for first, second in zip(seen[::2], seen[1::2], strict=True)] == whole
    seen.clear()
    tiny.distil(recipe_file, "fixed", *MERGED, "student.num_tokens=fixed", "schedule.num_steps=3")
    assert seen == [None, None, None]


def test_it_acts_and_a_stopped_run_equals_a_whole_one(recipe_file: str) -> None:
    settings = (*MERGED, "student.num_tokens=triangular", "schedule.num_steps=4")
    tiny.distil(recipe_file, "whole", *settings)
    assert tiny.distil(recipe_file, "parts", *settings, stop_at=2) is None
    tiny.distil(recipe_file, "parts", *settings)
    whole = tiny.last_state("whole", 4)
    tiny.assert_same_tensors(whole, tiny.last_state("parts", 4))
    tiny.distil(recipe_file, "fixed", *MERGED, "schedule.num_steps=4")
    fixed = tiny.last_state("fixed", 4)
    assert any(not torch.equal(tensor, fixed[key]) for key, tensor in whole.items() if key.startswith("student/"))


def test_gradient_checkpointing_covers_the_decoder(recipe_file: str) -> None:
    settings = (*MERGED, "student.num_tokens=triangular", "schedule.num_steps=2")
    tiny.distil(recipe_file, "plain", *settings)
    tiny.distil(recipe_file, "less", *settings, "student.gradient_checkpointing=true")
    tiny.assert_same_tensors(tiny.last_state("plain", 2), tiny.last_state("less", 2))
    distiller = Distiller(load_recipe(recipe_file, [*settings, "student.gradient_checkpointing=true"]), Path("again"))
    distiller.build()
    assert all(block.gradient_checkpointing for block in distiller.parts.model.radio_model.model.decoder.blocks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["student.num_tokens=uniform"], "`student.num_tokens` must be null without `student.config.downscale_levels`"),
        ([*MERGED, "student.compile=true"], "`student.compile` must be false with"),
        (
            [*MERGED[:2], "partitions=[{name: low, sizes_px: [32], token_budget: 40}]"],
            "`partitions.low.token_budget` must be null with",
        ),
        (
            [*MERGED, "taps.scheme=soft", "teachers.semantic.role=basic", "teachers.segmenter.role=task"],
            "`taps.scheme` must be null with",
        ),
    ],
)
def test_what_merged_tokens_cannot_do_is_refused(recipe_file: str, settings: list[str], message: str) -> None:
    recipe = load_recipe(recipe_file, settings)
    config = RadioConfig.from_preset("radio-test", **recipe.student.config)
    with pytest.raises(RecipeError, match=message):
        check_merging(recipe, config)
