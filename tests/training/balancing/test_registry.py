"""Every method in a run of 12 steps at its defaults, on the tiny student and teachers."""

import contextlib
from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny_distillation import PACKED, SPLIT_SETTINGS, assert_same_tensors, distil, last_state

from training.balancing.registry import METHODS, check_can_shard
from training.distillation import trainer
from training.distillation.saving.tensor_files import SavedTensors
from training.distillation.watching.run_history import RunHistory
from training.recipe import BalancingRecipe, RecipeError, load_recipe


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

TWELVE = (
    "schedule={num_steps: 12, warmup_steps: 2}",
    "student.config.drop_path_rate=0",
    "partitions.low.sizes_px=[32]",
    "checkpoints.every_steps=12",
)
ROLES = ("teachers.semantic.role=semantic", "teachers.segmenter.role=task")
MOVING = [method for method in METHODS if method != "fixed"]


def settings_of(method: str) -> tuple[str, ...]:
    return (*TWELVE, *ROLES, f"balancing.method={method}")


def weights_of(output: str, step: int = 12) -> dict[str, torch.Tensor]:
    saved = SavedTensors(Path(output) / "checkpoints" / f"step_{step:08d}", "balancing")
    return {key: saved.read(key) for key in saved.shapes}


class NoWeights:
    """Stands where weights would and fails if a loss is weighed."""

    def begin_step(self, step):
        pass

    observe = end_step = lambda *_: None
    scalars = state_dict = dict

    def watching(self, student):
        return contextlib.nullcontext()


def plain_sum(compare):
    """A loss as it is without any weights but the recipe's factors."""

    def compared(recipe, statistics, weights, contrasts, batch, example, answer, taps):
        assert isinstance(weights, NoWeights)
        assert contrasts is None
        assert not taps
        losses = compare(recipe, statistics, METHODS["fixed"](recipe, {}, None), None, batch, example, answer)
        total = torch.zeros(())
        for entry in recipe.teachers:
            total = total + entry.feature_weight * losses[f"features/{entry.name}"]
            if f"summary/{entry.name}" in losses:
                total = total + entry.summary_weight * losses[f"summary/{entry.name}"]
        return {**losses, "loss": total}

    return compared


def test_recipes_and_registry_name_the_same_methods() -> None:
    assert list(METHODS) == list(get_args(BalancingRecipe.model_fields["method"].annotation))


def test_fixed_is_no_weighting_bit_for_bit(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*settings_of("fixed"), "teachers.semantic.summary_weight=0.3", "teachers.segmenter.feature_weight=2")
    distil(recipe_file, "fixed", *settings)
    assert not Path("fixed/checkpoints/step_00000012/balancing.safetensors").exists()
    monkeypatch.setattr(trainer, "build_weights", lambda *_: NoWeights())
    monkeypatch.setattr(trainer, "compare_with_teachers", plain_sum(trainer.compare_with_teachers))
    distil(recipe_file, "none", *settings)
    assert_same_tensors(last_state("fixed", 12), last_state("none", 12))


@pytest.mark.parametrize("method", MOVING)
def test_every_method_acts_in_12_steps_and_resumes_exactly(recipe_file: str, method: str) -> None:
    settings = (*settings_of(method), "logging.every_steps=3")
    distil(recipe_file, "fixed", *settings, "balancing.method=fixed")
    distil(recipe_file, "whole", *settings)
    assert distil(recipe_file, "parts", *settings, stop_at=7) is None
    distil(recipe_file, "parts", *settings)
    assert_same_tensors(last_state("whole", 12), last_state("parts", 12))
    key = "student/radio_model.model.blocks.0.attn.qkv.weight"
    assert not torch.equal(last_state("whole", 12)[key], last_state("fixed", 12)[key])
    series = [RunHistory(Path(output, "history.jsonl"), 12).series() for output in ("whole", "parts")]
    assert series[0].keys() == series[1].keys()
    for group in ("features/semantic", "features/segmenter", "summary/semantic"):
        steps, values = series[0][f"weight/{group}"]
        assert (steps, values) == series[1][f"weight/{group}"]
        assert steps == [3, 6, 9, 12]
    moved = [value for name, (_, each) in series[0].items() if name.startswith("weight/features") for value in each]
    assert max(abs(value - 1) for value in moved) > 1e-3
    if method != "teacher_dropping":
        assert_same_tensors(weights_of("whole"), weights_of("parts"))


@pytest.mark.parametrize(("method", "others"), [*((method, PACKED) for method in MOVING), ("teacher_dropping", ())])
def test_accumulated_parts_equal_the_whole_batch(recipe_file: str, method: str, others: tuple[str, ...]) -> None:
    settings = (*settings_of(method), *SPLIT_SETTINGS, "loss.reduction=tokens", *others, "schedule.num_steps=6")
    distil(recipe_file, "whole", *settings)
    distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=2")
    whole, parts = last_state("whole", 6), last_state("parts", 6)
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)


PARTITIONS = (
    "partitions=[{name: low, sizes_px: [32], batch_size: 3},"
    " {name: high, sizes_px: [48], batch_size: 2, teachers: [semantic]}]"
)


@pytest.mark.parametrize("method", MOVING)
def test_partitions_may_have_other_teachers(recipe_file: str, method: str) -> None:
    distil(recipe_file, "run", *settings_of(method), PARTITIONS, "schedule.num_steps=6")
    assert all(torch.isfinite(tensor).all() for tensor in last_state("run", 6).values())


def test_gradnorm_cannot_be_sharded() -> None:
    check_can_shard(load_recipe("demo"))
    with pytest.raises(RecipeError, match=r"^`balancing.method` must be another than 'gradnorm' with FSDP"):
        check_can_shard(load_recipe("demo", ["balancing.method=gradnorm"]))
