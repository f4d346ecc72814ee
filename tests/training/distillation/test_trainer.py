"""The distillation loop on a tiny student, two tiny random teachers and random images."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.tracking
import pytest
import torch
from accelerate.utils import LoggerType
from filelock import FileLock
from mean_colors import shifts_of
from safetensors.torch import load_file, save, save_file
from tiny_distillation import (
    PACKED,
    REGULARIZED,
    SPLIT_SETTINGS,
    TinyTeacher,
    assert_same_tensors,
    distil,
    last_state,
    share_noise,
)
from torch import Tensor
from transformers import ViTConfig, ViTModel

import modeling_radio.data.training_images
import modeling_radio.training.teachers.registry
from modeling_radio import RadioModel
from modeling_radio.core.files import RUN_FILE, WriteError
from modeling_radio.core.interruption import TrainingDivergedError
from modeling_radio.core.machine import arithmetic
from modeling_radio.core.manifests import CheckpointError, write_manifest
from modeling_radio.core.ranks import STEP_TIMEOUT, TIMEOUT
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.training.distill import main
from modeling_radio.training.distillation import bad_steps, checkpoints, inputs, trainer
from modeling_radio.training.distillation.checkpoints import list_checkpoints
from modeling_radio.training.distillation.tracking import read_series
from modeling_radio.training.losses.alignment import AlignedMaps, Alignment
from modeling_radio.training.planning.memory import with_parts
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, load_recipe
from modeling_radio.training.student.parameters import is_of_trunk
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.training.views.plan import BatchPlan


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")


def test_seed_decides_the_weights(recipe_file: str) -> None:
    for output, seed in (("a", 0), ("b", 0), ("c", 1)):
        distil(recipe_file, output, f"seed={seed}", "schedule.num_steps=2")
    assert_same_tensors(last_state("a", 2), last_state("b", 2))
    key = "student/radio_model.model.blocks.0.attn.qkv.weight"
    assert not torch.equal(last_state("a", 2)[key], last_state("c", 2)[key])


@pytest.mark.parametrize("others", [(), PACKED], ids=["one shape", "packed"])
@pytest.mark.parametrize("num_parts", [2, 7])
def test_accumulated_parts_equal_the_whole_batch(
    recipe_file: str, others: tuple[str, ...], num_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are more parts than images."""
    share_noise(monkeypatch)
    settings = [*SPLIT_SETTINGS, *REGULARIZED, "student.config.drop_path_rate=0.3", *others]
    distil(recipe_file, "whole", *settings)
    distil(recipe_file, "parts", *settings, f"partitions.low.accumulation_steps={num_parts}")
    whole, parts = last_state("whole"), last_state("parts")
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("others", [(), PACKED], ids=["one shape", "packed"])
def test_one_teacher_an_image_in_parts_and_after_a_restart(
    recipe_file: str, others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 images in 2 parts a part may have none for a teacher."""
    share_noise(monkeypatch)
    settings = [*SPLIT_SETTINGS, *REGULARIZED, *others, "partitions.low.teachers_per_image=1", "schedule.num_steps=5"]
    distil(recipe_file, "whole", *settings)
    distil(recipe_file, "resumed", *settings, stop_at=2)
    distil(recipe_file, "resumed", *settings)
    assert_same_tensors(last_state("resumed", 5), last_state("whole", 5))
    distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=4")
    whole, parts = last_state("whole", 5), last_state("parts", 5)
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("others", [(), PACKED], ids=["one shape", "packed"])
def test_gradients_of_all_turns_have_that_of_all_teachers_as_their_mean(
    recipe_file: str, others: tuple[str, ...], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a factor: each teacher's sum over its images is divided by their expected number, not by all.

    This holds for losses that are means over images, weights and statistics of the teachers being equal. Runs estimate
    statistics from the images that a teacher sees, so that their targets differ.
    """
    entries = [
        f"{{name: {name}, kind: tiny, options: {{summary_dim: 5, feature_dim: 8}}}}" for name in ("a", "bb", "c")
    ]
    settings = [*others, f"teachers=[{', '.join(entries)}]"]
    learner = trainer.Distiller(load_recipe(recipe_file, settings), Path("run"))
    learner.build()
    parts = learner.parts
    dealt = load_recipe(recipe_file, [*settings, f"partitions.low.teachers_per_image={number}"])

    def gradient(recipe: Recipe, turn: int = 0) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda *_, **__: torch.tensor(turn))  # which teacher's turn is the first
            batches = list(BatchPlan(recipe, 11, patch_size=16).steps(0, 1))
        parts.model.zero_grad()
        for batch, example in parts.source.examples(lambda: batches):
            (trainer.batch_losses(parts, batch, example)["loss"] * batch.weight).backward()
        return torch.cat([each.grad.flatten() for each in parts.model.parameters() if each.grad is not None])

    whole, turns = gradient(learner.recipe), [gradient(dealt, turn) for turn in range(3)]
    assert (turns[0] - whole).norm() > 0.01 * whole.norm()
    assert (torch.stack(turns).mean(0) - whole).norm() < 1e-5 * whole.norm()


def test_auto_goes_on_with_the_parts_that_the_run_began_with(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits the device of the next session; other numbers of ranks choose anew."""
    settings = ["schedule.num_steps=2", "damp.sigma=0.1"]  # whose noise differs from part to part
    distil(recipe_file, "whole", *settings, "partitions.low.accumulation_steps=2")
    auto = load_recipe(recipe_file, [*settings, "partitions.low.accumulation_steps=auto"])
    monkeypatch.setattr(inputs, "_with_fitting_parts", lambda recipe, *_: with_parts(recipe, {"low": 2, "high": 2}))
    trainer.Distiller(auto, Path("stopped")).run(stop_at=1)
    monkeypatch.setattr(inputs, "_with_fitting_parts", None)
    resumed = trainer.Distiller(auto, Path("stopped"))
    resumed.run()
    assert_same_tensors(last_state("stopped", 2), last_state("whole", 2))
    assert load_recipe("stopped/recipe.yaml").partitions[0].accumulation_steps == 2
    state = json.loads((Path("stopped") / "checkpoints" / "step_00000002" / "state.json").read_text())
    elsewhere = {**state, "places_in_data": 2 * state["places_in_data"]}
    monkeypatch.setattr(trainer, "read_state", lambda _: elsewhere)
    assert trainer.Distiller(auto, Path("stopped")).recipe == auto


@pytest.mark.parametrize("temporal_patch_size", ["null", "2"])  # what projects clips is frozen
def test_parts_at_once_equal_parts_one_after_the_other_bit_for_bit(
    recipe_file: str, temporal_patch_size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["views.teachers=cached", "partitions.low.accumulation_steps=2", "schedule.num_steps=3"]
    settings.append(f"student.config.video_temporal_patch_size={temporal_patch_size}")
    distil(recipe_file, "one", *settings)
    losses, threads = trainer.batch_losses, set()

    def recorded(*arguments):
        threads.add(threading.current_thread())
        return losses(*arguments)

    monkeypatch.setattr(trainer, "batch_losses", recorded)
    distil(recipe_file, "two", *settings, "student.passes_at_once=2")
    assert len(threads) == 2
    assert threading.main_thread() not in threads
    assert_same_tensors(last_state("one", 3), last_state("two", 3))


def first_losses(recipe_file: str, output: str, *settings: str) -> dict[str, float]:
    distiller = trainer.Distiller(load_recipe(recipe_file, [*SHIFTED, *settings]), Path(output))
    values: dict[str, float] = {}
    train_step = distiller.train_step

    def recorded(examples):
        losses = train_step(examples)
        values.update({name: loss.item() for name, loss in losses.items()})
        return losses

    distiller.train_step = recorded
    distiller.run(stop_at=1)
    return values


SHIFTED = (
    "partitions.low.sizes_px=[64]",
    "views={teachers: online, max_shift_patches: 2}",
    "loss.features=smooth_l1",
)


@pytest.mark.usefixtures("far_shifts")
def test_weights_of_teachers_and_partitions_act(recipe_file: str) -> None:
    plain = first_losses(recipe_file, "plain")
    parts = [plain[f"{kind}/semantic"] for kind in ("features", "summary")] + [plain["features/segmenter"]]
    assert plain["loss"] == pytest.approx(sum(parts))
    weighted = ("teachers.semantic.feature_weight=3", "teachers.semantic.summary_weight=0.5")
    changed = first_losses(recipe_file, "weighted", *weighted, "partitions.low.weight=0.25")
    assert changed["loss"] == pytest.approx(0.25 * (3 * parts[0] + 0.5 * parts[1] + parts[2]))
    assert changed["gradient_norm"] != pytest.approx(plain["gradient_norm"], rel=0.1)


@pytest.mark.usefixtures("far_shifts")
def test_losses_that_a_recipe_names_act(recipe_file: str) -> None:
    def losses_with(features: str, summary: str) -> dict[str, float]:
        return first_losses(recipe_file, features, f"loss.features={features}", f"loss.summary={summary}")

    named = [losses_with("mse", "balanced"), losses_with("cosine_smooth_l1", "angle"), losses_with("cosine", "cosine")]
    for name in ("features/semantic", "features/segmenter", "summary/semantic"):
        assert min(abs(a[name] - b[name]) for a, b in itertools.combinations(named, 2)) > 1e-3
    norms = [losses["gradient_norm"] for losses in named]
    assert min(abs(a / b - 1) for a, b in itertools.combinations(norms, 2)) > 1e-3


def test_output_folder_opens_with_features_in_the_teachers_space(recipe_file: str) -> None:
    final = distil(recipe_file, "run")
    assert final is not None
    assert {path.name for path in Path("run").iterdir()} == {
        "recipe.yaml",
        "learned_from.json",
        "history.jsonl",
        "checkpoints",
        "final",
    }
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {path.name for path in final.iterdir()}
    model = RadioModel.from_pretrained(final)
    output = model(torch.rand(1, 3, 32, 48), feature_format="NCHW")
    assert output.adaptors["semantic"].summary.shape == (1, 10)
    assert output.adaptors["segmenter"].summary is None
    assert output.adaptors["segmenter"].features.shape == (1, 9, 2, 3)
    # The teacher's features lie around 3; a standardized head's would lie around 0.
    assert output.adaptors["segmenter"].features.mean().item() == pytest.approx(3, abs=0.5)


NORMALIZED = "export={feature_normalizer: true, intermediate_normalizers: per_block}"


def test_normalizers_are_fitted_where_the_student_is_exported(
    recipe_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "NORMALIZER_IMAGES", 30)
    finals = [distil(recipe_file, "plain"), distil(recipe_file, "normalized", NORMALIZED)]
    assert "Feature normalizers: fitted to 32 images." in capsys.readouterr().out
    assert_same_tensors(last_state("plain"), last_state("normalized"))  # what is trained is the same
    plain, normalized = (RadioModel.from_pretrained(final).eval() for final in finals)
    pixel_values = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        before, after = plain(pixel_values), normalized(pixel_values)
        inner = [model.get_intermediate_features(pixel_values, [0])[0].features for model in (plain, normalized)]
    network = normalized.radio_model.feature_normalizer
    torch.testing.assert_close(after.features, (before.features - network.mean) @ network.tx.T, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(before.features, after.features, atol=0.1)
    assert not torch.allclose(*inner, atol=0.1)
    for name in ("semantic", "segmenter"):
        answers = (output.adaptors[name].features for output in (before, after))
        torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-3)


def test_a_student_starts_from_one_with_normalizers(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "NORMALIZER_IMAGES", 30)
    start = distil(recipe_file, "first", NORMALIZED, "schedule.num_steps=2")
    again = distil(recipe_file, "second", f"student.init_from={start}", "optimizer.learning_rate=1e-9")
    first, second = (RadioModel.from_pretrained(folder).eval() for folder in (start, again))
    pixel_values = torch.rand(2, 3, 32, 48)
    assert second.radio_model.feature_normalizer is None
    with torch.no_grad():
        answers = [model(pixel_values).adaptors["semantic"].features for model in (first, second)]
    torch.testing.assert_close(*answers, rtol=1e-2, atol=1e-2)


def test_a_run_remembers_the_license_of_a_start_that_is_gone(recipe_file: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    ViTModel(ViTConfig(**sizes, patch_size=16, image_size=64)).save_pretrained("vit")
    Path("vit/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert distil(recipe_file, "run", "student.init_from=vit", stop_at=2) is None
    shutil.rmtree("vit")
    lineage = Lineage.find(distil(recipe_file, "run", "student.init_from=vit"))
    assert [(each.name, each.license) for each in lineage.weights] == [("vit", "cc-by-nc-4.0")]
    assert lineage == Lineage.find(Path("run"))


def test_recipe_saved_with_the_run_repeats_it(recipe_file: str) -> None:
    distil(recipe_file, "first", "seed=5", stop_at=3)
    distil("first/recipe.yaml", "second", stop_at=3)
    assert_same_tensors(last_state("first", 3), last_state("second", 3))


def test_shares_of_the_run_are_its_steps(recipe_file: str) -> None:
    names = ("schedule.warmup_steps", "standardization.estimation_steps", "optimizer.trunk_frozen_steps")
    names = (*names, "optimizer.trunk_warmup_steps", "mesa.start_step")
    for output, values in (("steps", (2, 4, 1, 2, 6)), ("shares", (0.25, 0.5, 0.125, 0.25, 0.75))):
        changes = [f"{name}={value}" for name, value in zip(names, values, strict=True)]
        distil(recipe_file, output, "mesa.weight=0.5", *changes)
    assert_same_tensors(last_state("steps"), last_state("shares"))


def test_average_or_student_is_exported(recipe_file: str) -> None:
    exported = {}
    for is_exported in ("true", "false"):
        final = distil(recipe_file, f"run-{is_exported}", f"ema.is_exported={is_exported}", "ema.decay=0.99")
        assert final is not None
        exported[is_exported] = load_file(final / "model.safetensors")
    key = "radio_model.model.blocks.0.attn.qkv.weight"
    state = last_state("run-true")
    assert torch.equal(exported["true"][key], state[f"ema/module.{key}"])
    assert torch.equal(exported["false"][key], state[f"student/{key}"])


def test_overfits_a_handful_of_images(recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "data.num_images=4",
        "views={teachers: cached, flip_probability: 0}",
        "partitions.low.sizes_px=[64]",
        "student.config.drop_path_rate=0",
        "standardization={calibration_steps: 1, estimation_steps: 0}",
        "optimizer.learning_rate=5e-3",
        "schedule={num_steps: 60, warmup_steps: 5}",
        "checkpoints.every_steps=1000",
    ]
    distiller = trainer.Distiller(load_recipe(recipe_file, settings), Path("run"))
    losses = record_losses(distiller)
    distiller.run()
    assert losses[0] > 2
    assert sum(losses[-10:]) / 10 < 0.25 * losses[0]


def record_losses(distiller: trainer.Distiller) -> list[float]:
    losses, train_step = [], distiller.train_step

    def recorded(examples):
        values = train_step(examples)
        losses.append(values["loss"].item())
        return values

    distiller.train_step = recorded
    return losses


def test_a_trunk_that_wakes_warms_up_and_counts_its_own_steps(recipe_file: str) -> None:
    times = "trunk_frozen_steps: 0.5, trunk_warmup_steps: 2"
    settings = [f"optimizer={{name: lamb, {times}}}", "standardization.method=global"]
    distiller = trainer.Distiller(load_recipe(recipe_file, settings), Path("run"))
    rates, gradients, clip = [], [], distiller._clip_gradients

    def recorded():
        by_part = {group["is_trunk"]: group["lr"] for group in distiller.parts.optimizer.param_groups}
        rates.append(by_part[True] / by_part[False])
        named = distiller.parts.model.named_parameters()
        gradients.append({is_of_trunk(name) for name, parameter in named if parameter.grad is not None})
        return clip()

    distiller._clip_gradients = recorded
    distiller.run()
    assert rates == pytest.approx([0, 0, 0, 0, 0.5, 1, 1, 1])
    assert gradients == [{False}] * 4 + [{False, True}] * 4
    assert {int(value) for key, value in last_state("run").items() if key.endswith(".step")} == {4, 8}


class FailingTeacher(TinyTeacher):
    """Gives NaN before a batch, and after one."""

    num_batches, first_good, last_good = 0, 1, 3

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        self.num_batches += 1
        is_good = self.first_good <= self.num_batches <= self.last_good
        output = super().encode(pixel_values)
        return output._replace(features=output.features * (1 if is_good else float("nan")))


@pytest.mark.parametrize(("first_good", "is_enough"), [(2, True), (3, False)])
def test_a_batch_of_calibration_that_is_not_finite_is_left_out(
    first_good: int,
    is_enough: bool,
    recipe_file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(modeling_radio.training.teachers.registry.TEACHER_KINDS, "failing", FailingTeacher)
    monkeypatch.setattr(FailingTeacher, "first_good", first_good)
    monkeypatch.setattr(FailingTeacher, "last_good", 99)
    settings = ["teachers.segmenter.kind=failing", "standardization.calibration_steps=2", "schedule.num_steps=1"]
    if is_enough:
        assert distil(recipe_file, "run", *settings) is not None
    else:
        with pytest.raises(RecipeError, match="teacher 'segmenter'"):
            distil(recipe_file, "run", *settings)
    assert capsys.readouterr().out.count("leaves out a batch of teacher 'segmenter'") == first_good - 1


def test_non_finite_steps_are_skipped_then_the_run_gives_up(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(modeling_radio.training.teachers.registry.TEACHER_KINDS, "failing", FailingTeacher)
    monkeypatch.setattr(FailingTeacher, "last_good", 7)
    settings = ["teachers.segmenter.kind=failing", "optimizer.max_bad_steps=3", "checkpoints={every_steps: 1, keep: 9}"]
    with pytest.raises(TrainingDivergedError, match=r"features/segmenter on rank 0 \(3 in a row\)"):
        distil(recipe_file, "run", *settings)
    said = capsys.readouterr().out
    assert "Step 5 skipped: not finite: loss, features/segmenter on rank 0 (1 in a row)" in said
    assert "Step 5: what it saw is in 'run/skipped/step_00000005-rank_0.json'." in said
    losses = read_series(Path("run/history.jsonl"))["loss"]
    assert losses[0] == [2, 4, 6]
    assert all(map(math.isfinite, losses[1]))  # of the sixth step, which was skipped, the record says nothing
    # Two batches calibrated and five trained; then neither the weights nor that teacher's statistics moved.
    before, after = last_state("run", 5), last_state("run", 6)
    moments = [f"statistics/features.segmenter.{name}" for name in ("count", "total", "outer_total")]
    kept = [key for key in before if not key.startswith("statistics/")] + moments
    assert_same_tensors({key: before[key] for key in kept}, {key: after[key] for key in kept})


def bad_step(recipe_file: str, monkeypatch: pytest.MonkeyPatch, *settings: str) -> tuple[dict, dict[str, Tensor]]:
    """Return what is written of a run whose third step is not finite, and of others that follow."""
    monkeypatch.setitem(modeling_radio.training.teachers.registry.TEACHER_KINDS, "failing", FailingTeacher)
    monkeypatch.setattr(FailingTeacher, "last_good", 4)
    failing = ["teachers.segmenter.kind=failing", "optimizer.max_bad_steps=5", "logging.every_steps=1", *settings]
    with pytest.raises(TrainingDivergedError):
        distil(recipe_file, "run", *failing)
    files = {path.name for path in Path("run/skipped").glob("*.json")}
    assert files == {f"step_0000000{step}-rank_0.json" for step in (2, 3, 4)}  # no more than three
    path = Path("run/skipped/step_00000002-rank_0.safetensors")
    tensors = load_file(path) if path.exists() else {}
    return json.loads(path.with_suffix(".json").read_text()), tensors


def test_what_a_skipped_step_saw_is_written(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record, tensors = bad_step(recipe_file, monkeypatch)
    (part,) = record["parts"]
    assert record["not_finite"] == ["loss", "features/segmenter"]
    assert record["tensors_not_finite"] == ["0/features/segmenter/0"]
    assert part["losses"]["features/segmenter"] == "nan"
    assert part["losses"]["features/semantic"] > 0
    assert tensors["0/features/segmenter/0"].isnan().all()
    batch = next(BatchPlan(load_recipe(recipe_file), 11, patch_size=16).steps(2, 3))
    assert [image["index"] for image in part["images"]] == list(batch.indices)
    assert [image["patches"] for image in part["images"]] == [list(shape.grid) for shape in batch.shapes]
    rows, cols = part["images"][0]["patches"]
    assert tensors["0/images/0"].shape == (len(batch), 3, 16 * rows, 16 * cols)


def test_of_large_batches_only_numbers_are_written(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_steps, "MAX_BYTES", 1000)
    record, tensors = bad_step(recipe_file, monkeypatch)
    assert (tensors, record["tensors_not_finite"]) == ({}, [])
    assert len(record["parts"][0]["images"]) == 4


def test_a_second_run_in_the_folder_is_refused_and_touches_nothing(
    recipe_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run/.partial-mine").mkdir(parents=True)
    Path("run", RUN_FILE).write_text("radio distill\n")
    first = FileLock("run/.lock")
    with first:
        assert main(["--recipe", recipe_file, "--output", "run"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("radio distill: error: Another run is at work in 'run'.")
        assert {path.name for path in Path("run").iterdir()} == {".partial-mine", ".lock", RUN_FILE}
    assert main(["--recipe", recipe_file, "--output", "run", "--stop-at", "1"]) == 0
    assert {path.name for path in Path("run").iterdir()} == {
        "recipe.yaml",
        "learned_from.json",
        "checkpoints",
        RUN_FILE,
    }


def test_other_recipe_does_not_resume(recipe_file: str) -> None:
    distil(recipe_file, "run", stop_at=1)
    with pytest.raises(RecipeError, match=r"\(seed: 0 -> 1\)"):
        distil(recipe_file, "run", "seed=1")
    distil(recipe_file, "run", "logging.every_steps=1", "optimizer.max_bad_steps=3", stop_at=2)


def test_a_run_goes_on_with_changes_that_are_allowed(recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", recipe_file, "--output", "run"]
    assert main([*arguments, "--stop-at", "3"]) == 0
    changed = [*arguments, "optimizer.learning_rate=1e-30", "--stop-at", "4"]
    assert main(changed) == 1
    assert "`radio distill --allow-changes optimizer.learning_rate` goes on" in capsys.readouterr().err
    assert main([*changed, "--allow-changes", "optimizer.learning_rat"]) == 1
    assert "Did you mean 'optimizer.learning_rate'?" in capsys.readouterr().err
    assert main([*changed, "--allow-changes", "optimizer.learning_rate,data"]) == 0
    line = "Going on from step 3 with changes: optimizer.learning_rate: 0.001 -> 1e-30."
    assert line in capsys.readouterr().out.splitlines()
    key = "student/radio_model.model.blocks.0.attn.qkv.weight"
    assert torch.equal(last_state("run", 3)[key], last_state("run", 4)[key])
    assert main([*arguments, "optimizer.learning_rate=1e-30", "--stop-at", "5"]) == 0  # what is saved has it


def test_a_run_that_is_extended_has_no_older_export_once_it_is_trained(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(distiller: trainer.Distiller) -> None:
        raise KeyboardInterrupt

    distil(recipe_file, "run")
    recipe = load_recipe(recipe_file, ["schedule.num_steps=11"])
    extended = trainer.Distiller(recipe, Path("run"), allowed_changes=["schedule"])
    extended.run(stop_at=10)
    assert Path("run/final").is_dir()
    assert not trainer.Distiller(recipe, Path("run")).is_finished
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Distiller, "_export", die)
        with pytest.raises(KeyboardInterrupt):
            trainer.Distiller(recipe, Path("run")).run()
    assert list_checkpoints(Path("run/checkpoints"))[-1].name == "step_00000011"
    assert not trainer.Distiller(recipe, Path("run")).is_finished
    assert distil(recipe_file, "run", "schedule.num_steps=11") == Path("run/final")
    assert trainer.Distiller(recipe, Path("run")).is_finished


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"feature_dim": 11},
            r"student.safetensors' is of another network \(.*feat_mlp.*\(12,\) -> \(11,\) and 1 more\)",
        ),
        ({"summary_dim": None}, r"student.safetensors' is of another network \(.*-> \(absent\) and"),
    ],
)
def test_a_teacher_that_answers_otherwise_does_not_resume(
    recipe_file: str, changed: dict[str, int | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil(recipe_file, "run", stop_at=1)

    class Changed(TinyTeacher):
        def __init__(
            self, name: str, *, source: str | None = None, feature_dim: int, summary_dim: int | None = None
        ) -> None:
            sizes = {"feature_dim": feature_dim, "summary_dim": summary_dim}
            super().__init__(name, **sizes | (changed if name == "semantic" else {}))

    monkeypatch.setitem(modeling_radio.training.teachers.registry.TEACHER_KINDS, "tiny", Changed)
    with pytest.raises(CheckpointError, match=message):
        distil(recipe_file, "run")


def test_moments_of_other_shapes_are_never_loaded(recipe_file: str) -> None:
    distil(recipe_file, "run", stop_at=1)
    path = Path("run/checkpoints/step_00000001")
    tensors = load_file(path / "optimizer.safetensors")
    save_file(tensors | {"0.exp_avg": torch.zeros(3)}, path / "optimizer.safetensors")
    write_manifest(path)
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors' .*\(0.exp_avg: "):
        distil(recipe_file, "run")


@pytest.mark.parametrize(("name", "size"), [("student.safetensors", 5000), ("state.json", 0)])
def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    recipe_file: str, name: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ("schedule.num_steps=3", "checkpoints.every_steps=1")
    distil(recipe_file, "whole", *settings)
    distil(recipe_file, "run", *settings, stop_at=2)
    damaged = Path("run/checkpoints/step_00000002") / name
    os.truncate(damaged, size)
    distil(recipe_file, "run", *settings)
    (line,) = [message for message in caplog.messages if "step_00000002" in message]
    assert line.startswith(f"'{damaged}' has {size} bytes instead of ")
    assert line.endswith("goes on from 'run/checkpoints/step_00000001' instead")
    assert_same_tensors(last_state("whole", 3), last_state("run", 3))
    assert [path.name for path in sorted(Path("run/checkpoints").iterdir())] == ["step_00000002", "step_00000003"]


def test_damage_of_all_checkpoints_is_one_line(recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", recipe_file, "--output", "run", "--stop-at", "1"]
    assert main(arguments) == 0
    os.truncate("run/checkpoints/step_00000001/optimizer.safetensors", 7)
    capsys.readouterr()
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("radio distill: error: 'run/checkpoints' has no intact checkpoint: 'run/checkpoints/step_0")
    assert Path("run/checkpoints/step_00000001/state.json").is_file()


@pytest.mark.parametrize(("kind", "streaming"), [("folder", "false"), ("webdataset", "true")])
def test_data_that_changed_between_two_sessions_are_told(
    recipe_file: str,
    write_source: Callable[..., str],
    kind: str,
    streaming: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(inputs, "build_training_images", modeling_radio.data.training_images.build_training_images)
    folder = Path(write_source(kind, 6))
    settings = (f"data={{source: {folder}, num_images: null, shuffle_buffer: 4, streaming: {streaming}}}",)
    distil(recipe_file, "run", *settings, stop_at=1)
    distil(recipe_file, "run", *settings, stop_at=2)
    assert caplog.messages == []
    shutil.rmtree(folder)
    Path(write_source(kind, 6, first=1)).rename(folder)
    distil(recipe_file, "run", *settings, stop_at=3)
    (line,) = caplog.messages
    assert line.startswith("'run/checkpoints/step_00000002' was trained on other data (")
    distil(recipe_file, "run", *settings, stop_at=4)
    assert len(caplog.messages) == 1


def test_other_rounding_between_two_sessions_is_told(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    distil(recipe_file, "run", stop_at=1)
    distil(recipe_file, "run", stop_at=2)
    assert caplog.messages == []
    monkeypatch.setattr(checkpoints, "arithmetic", lambda: arithmetic() | {"instruction set": "ABACUS"})
    distil(recipe_file, "run", stop_at=3)
    (line,) = caplog.messages
    assert re.search(r"'run/checkpoints/step_00000002' .*\(instruction set: .* -> ABACUS\)", line)


def test_restart_never_overwrites(recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", recipe_file, "--output", "run", "--stop-at", "1"]
    assert main(arguments) == 0
    assert "Stopped at step 1 as asked." in capsys.readouterr().out
    assert main([*arguments, "--restart"]) == 1
    assert "'run' is not empty: give another --output" in capsys.readouterr().err
    assert main(["--recipe", recipe_file, "--output", "other", "--stop-at", "1", "--restart"]) == 0


def test_finished_run_is_left_as_it_is(recipe_file: str) -> None:
    distil(recipe_file, "run")
    before = last_state("run")
    assert distil(recipe_file, "run") == Path("run/final")
    assert_same_tensors(before, last_state("run"))


def test_full_disk_ends_with_one_line_and_the_last_checkpoint(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--recipe", recipe_file, "--output", "run"]
    assert main([*arguments, "--stop-at", "3"]) == 0

    def write_to_full_disk(tensors: dict[str, Tensor], path: Path) -> None:
        Path("/dev/full").write_bytes(save(tensors))

    with monkeypatch.context() as patch:
        patch.setattr("modeling_radio.training.distillation.checkpoints.save_file", write_to_full_disk)
        assert main(arguments) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(
        "radio distill: error: Cannot write 'run/checkpoints/step_00000006': No space left on device"
    )
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step_00000003"]
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "dmeo"], "Unknown recipe 'dmeo'. Did you mean 'demo'"),
        (["optimizer.learning_rat=1"], "Did you mean 'learning_rate'"),
        (["loss.features=msa"], "got 'msa'. Did you mean 'mse'"),
        (["loss.summary=angel"], "`loss.summary` must be one of"),
        (["partitions.low.weight=0"], "`partitions.low.weight` must be a number above 0, got 0."),
        (["standardization.method=phis"], "Did you mean 'phi_s'"),
        (["optimizer.name=adam"], "`optimizer.name` must be one of"),
        (["teachers.semantic.kind=tinny"], "got 'tinny'. Did you mean 'tiny'?"),
        (["student.config.hiden_size=8"], "Did you mean 'hidden_size'"),
        (["logging.trackers=[tensorbord]"], "tensorbord"),
        (["--stop-at", "0"], "`stop_at` must be an integer above 0, or null, got 0."),
        (["--stop-at", "-5"], "`stop_at` must be an integer above 0, or null, got -5."),
    ],
)
def test_bad_input_is_one_line(
    recipe_file: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = [] if "--recipe" in arguments else ["--recipe", recipe_file]
    assert main([*defaults, "--output", "run", *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("radio distill: error: ")
    assert message in error[0]
    assert not Path("run/checkpoints").exists()


def test_an_export_that_fails_leaves_the_older_one(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    final = distil(recipe_file, "run")
    assert final is not None
    before = load_file(final / "model.safetensors")

    def fail(*_: object, **__: object) -> None:
        raise WriteError("no space")

    def changed() -> trainer.Distiller:
        recipe = load_recipe(recipe_file, ["optimizer.learning_rate=0.5"])
        return trainer.Distiller(recipe, Path("run"), allowed_changes=["optimizer.learning_rate"])

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "export_student", fail)
        with pytest.raises(WriteError):
            changed().run()
    assert_same_tensors(before, load_file(final / "model.safetensors"))
    assert not changed().changes  # the checkpoint has the new recipe
    assert not changed().is_finished  # a stage would not hand the older export on
    changed().run()
    assert changed().is_finished


def test_a_finished_run_of_another_recipe_is_not_replaced(recipe_file: str) -> None:
    """Its checkpoints, which would tell, may have been removed."""
    assert main(["--recipe", recipe_file, "--output", "run"]) == 0
    shutil.rmtree("run/checkpoints")
    with pytest.raises(RecipeError, match=r"'run/final' .*\(optimizer\.learning_rate: "):
        distil(recipe_file, "run", "optimizer.learning_rate=0.5")
    assert distil(recipe_file, "run") is not None


@pytest.mark.parametrize("words", [[], ["schedule.num_steps=1"]])
def test_nothing_is_started_without_a_recipe(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("usage: radio distill ")
    assert "`recipe` has no value" in error.splitlines()[-1]
    assert not Path("runs").exists()


def test_weights_and_biases_get_one_run_with_its_recipe(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    configurations: list[dict[str, Any]] = []
    logged: list[int] = []

    def init(**options: Any) -> SimpleNamespace:
        started.append(options)
        return SimpleNamespace(log=lambda values, step: logged.append(step), finish=lambda: None)

    config = SimpleNamespace(update=lambda values, **options: configurations.append(values))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, config=config))
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TENSORBOARD, LoggerType.WANDB])
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    settings = "logging.trackers=[tensorboard, wandb]"
    distil(recipe_file, "a/run", settings, stop_at=2)
    distil(recipe_file, "a/run", settings, stop_at=4)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    distil(recipe_file, "b/run", settings, stop_at=2)
    first, again, other = started
    assert first == again
    assert (first["project"], first["name"], first["resume"]) == ("radio-distillation", "a/run", "allow")
    assert (other["project"], other["name"]) == ("mine", "b/run")
    assert first["id"] != other["id"]
    assert configurations[0] == load_recipe(recipe_file, [settings]).to_dict()
    assert logged == [2, 4, 2]
    assert len(list(Path("a/run/logs").iterdir())) == 2  # one of each session


def test_ranks_wait_a_day_but_for_the_steps_between(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    train_step = trainer.Distiller.train_step
    monkeypatch.setattr(trainer, "set_timeout", seen.append)
    monkeypatch.setattr(trainer.Distiller, "train_step", lambda *each: seen.append("step") or train_step(*each))
    distil(recipe_file, "run", "schedule.num_steps=3")
    assert seen == ["step", STEP_TIMEOUT, "step", "step", TIMEOUT]


def test_shifts_count_patches_where_heads_are_finer(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, apply = [], Alignment.apply

    def recorded(alignment: Alignment, student: Tensor, teacher: Tensor) -> AlignedMaps:
        seen.append((tuple(student.shape[2:]), shifts_of(alignment)))
        return apply(alignment, student, teacher)

    monkeypatch.setattr(Alignment, "apply", recorded)
    distil(recipe_file, "run", "student.adaptor.upsample_factor=2", "partitions.low.sizes_px=[64]", stop_at=2)
    positions = torch.cat([each for _, each in seen])
    assert {cells for cells, _ in seen} == {(8, 8)}
    assert positions.any()
    assert not (positions % 2).any()


def test_ctrl_c_in_mid_training_ends_with_a_checkpoint(recipe_file: str) -> None:
    process = os.fork()
    if process == 0:
        os.setsid()
        arguments = ["--recipe", recipe_file, "--output", "run", "schedule.num_steps=100000", "data.num_workers=1"]
        with Path("said.txt").open("w", buffering=1) as sys.stderr:
            try:
                os._exit(main(arguments))
            finally:
                os._exit(1)
    deadline = time.monotonic() + 100
    while not list(Path("run").glob("checkpoints/step_*")):
        assert os.waitpid(process, os.WNOHANG) == (0, 0), Path("said.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process, signal.SIGINT)  # as a terminal does: the data workers get it too
    status, error = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), Path("said.txt").read_text()
    assert status == 130, error
    (message,) = [line for line in error.splitlines() if line.startswith("radio distill:")]
    assert message.startswith("radio distill: Stopped after step ")
    assert message.endswith("the same command resumes.")
    step = int(message.split()[5])
    assert (Path("run/checkpoints") / f"step_{step:08d}" / "state.json").is_file()
    assert "Traceback" not in error
