"""The full step on the tiny world of `tiny_distillation.py`: restarts, kills, invariances, export, stages."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny_distillation as tiny
import torch
from killing import is_killed, wait_for
from safetensors.torch import load_file, save_file
from tiny_networks import NETWORKS
from torch import Tensor

import modeling_radio.training.teachers.registry
from modeling_radio import RadioModel
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.training.distill import main
from modeling_radio.training.distillation.checkpoints import list_checkpoints
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.distillation.step import batch_losses
from modeling_radio.training.distillation.tracking import RunHistory
from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.recipes.recipe import RecipeError, load_recipe, stage_recipes
from modeling_radio.training.teachers.outputs import TeacherOutput


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

# PHI-S still estimates at step 5, in the middle of an epoch of 11 images; MESA has begun.
TEN_STEPS = ("schedule={num_steps: 10, warmup_steps: 2}", "standardization={estimation_steps: 8}")
EVERYTHING = (
    *TEN_STEPS,
    "damp={sigma: 0.1}",
    "spectral.is_used=true",
    "mesa={weight: 0.5, start_step: 3}",
    "data.image_size_px=80",  # room for another window of the moving average
    "optimizer.trunk_frozen_steps=2",
    "partitions=[{name: low, sizes_px: [32, 48], batch_size: 3, accumulation_steps: 2, vitdet_windows: [1]}, "
    "{name: high, sizes_px: [64], batch_size: 2}]",
)
# Changes of files that a checkpoint and an export make at least; a kill comes at any of them.
NUM_CHANGES = {"checkpoint": 12, "export": 40}
# No linear layers, hence neither noise nor scales.
BATCH_NORM = (*NETWORKS["ResNet"].overrides, "damp.sigma=0", "spectral.is_used=false")


@pytest.mark.parametrize(
    ("views", "optimizer", "others"),
    [
        ("online", "adamw", ()),
        pytest.param("cached", "lamb", (), marks=pytest.mark.tour),
        pytest.param("online", "muon", (), marks=pytest.mark.tour),
        pytest.param("online", "lamb", tiny.PACKED, marks=pytest.mark.tour),
        ("cached", "muon", tiny.PACKED),
    ],
)
def test_ten_steps_equal_five_and_five(recipe_file: str, views: str, optimizer: str, others: tuple[str, ...]) -> None:
    settings = [*EVERYTHING, *others, f"views.teachers={views}", f"optimizer.name={optimizer}"]
    tiny.distil(recipe_file, "whole", *settings)
    assert tiny.distil(recipe_file, "parts", *settings, stop_at=5) is None
    tiny.distil(recipe_file, "parts", *settings)
    whole, parts = (tiny.last_state(output, 10) for output in ("whole", "parts"))
    assert any(key.endswith(".left") for key in whole)
    tiny.assert_same_tensors(whole, parts)


def test_signal_before_the_first_step_ends_the_run_at_once(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where images lie on a disk that does not answer."""

    def wait(data: object, *, is_square: bool, used_px: int) -> None:
        Path("waiting").touch()
        time.sleep(60)
        Path("waited").touch()

    monkeypatch.setattr("modeling_radio.training.distillation.inputs.build_training_images", wait)
    process = os.fork()
    if process == 0:
        tiny.distil(recipe_file, "run")
    wait_for(Path("waiting").exists, 300, "it does not begin")
    os.kill(process, signal.SIGTERM)
    assert os.waitpid(process, 0)[1] == signal.SIGTERM
    assert not Path("waited").exists()


@pytest.mark.parametrize("others", [(), tiny.PACKED, BATCH_NORM], ids=["plain", "packed", "batch norm"])
@pytest.mark.parametrize(("num_kills", "num_steps"), [(1, 6), pytest.param(10, 50, marks=pytest.mark.slow)])
def test_run_killed_at_random_moments_equals_an_undisturbed_one(
    recipe_file: str, num_kills: int, num_steps: int, others: tuple[str, ...]
) -> None:
    """In training, where checkpoints come and go, and in the export: nothing is lost, and nothing left behind."""
    settings = [*EVERYTHING, *others, f"schedule.num_steps={num_steps}", "checkpoints={every_steps: 1, keep: 2}"]
    recipe, draw = load_recipe(recipe_file, settings), random.Random(0)
    run_recipe(recipe, Path("whole"))

    def work() -> None:
        run_recipe(recipe, Path("killed"))

    def checkpoints() -> list[Path]:
        return list_checkpoints(Path("killed/checkpoints"))

    for _ in range(num_kills):
        before = checkpoints()
        assert is_killed(work, lambda before=before: checkpoints() != before, draw.randrange(NUM_CHANGES["checkpoint"]))
        assert not Path("killed/final").exists(), "the run reached its end"
    run_recipe(recipe, Path("killed"))
    for _ in range(num_kills):
        assert is_killed(
            work, lambda: any(Path("killed").glob(".partial-final*")), draw.randrange(NUM_CHANGES["export"])
        )
    run_recipe(recipe, Path("killed"))
    tiny.assert_same_tensors(*(tiny.last_state(output, num_steps) for output in ("whole", "killed")))
    whole, killed = (load_file(Path(output) / "final/model.safetensors") for output in ("whole", "killed"))
    tiny.assert_same_tensors(whole, killed)
    left = [{str(path.relative_to(output)) for path in Path(output).rglob("*")} for output in ("whole", "killed")]
    assert left[0] == left[1]


@pytest.mark.parametrize(
    ("views", "optimizer"), [("online", "lamb"), pytest.param("cached", "muon", marks=pytest.mark.tour)]
)
def test_run_killed_while_it_trains_on_and_saves_equals_an_undisturbed_one(
    recipe_file: str, views: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        *EVERYTHING,
        "schedule.num_steps=8",
        "checkpoints.every_steps=2",
        f"views.teachers={views}",
        f"optimizer.name={optimizer}",
    ]
    tiny.distil(recipe_file, "whole", *settings)
    train_step = Distiller.train_step

    def save_slowly(tensors: dict[str, Tensor], path: Path) -> None:
        while path.parent.name.endswith("step_00000004"):
            path.write_bytes(b"half of a file")
            time.sleep(0.01)
        save_file(tensors, path)

    def noted(distiller: Distiller, examples: object) -> dict[str, Tensor]:
        values = train_step(distiller, examples)
        Path(f"did-{distiller.step - 1}").touch()
        return values

    def is_at_work_on_both() -> bool:
        return Path("did-4").exists() and any(Path("killed/checkpoints").glob(".partial-step_00000004/*"))

    with monkeypatch.context() as patch:
        patch.setattr("modeling_radio.training.distillation.checkpoints.save_file", save_slowly)
        patch.setattr(Distiller, "train_step", noted)
        assert is_killed(lambda: tiny.distil(recipe_file, "killed", *settings), is_at_work_on_both)
    assert [path.name for path in list_checkpoints(Path("killed/checkpoints"))] == ["step_00000002"]
    tiny.distil(recipe_file, "killed", *settings)
    tiny.assert_same_tensors(*(tiny.last_state(output) for output in ("whole", "killed")))
    left = [sorted(path.name for path in Path(output, "checkpoints").iterdir()) for output in ("whole", "killed")]
    assert left[0] == left[1]


class ChangedTeacher(tiny.TinyTeacher):
    """Another unit for summaries and features, another origin for features."""

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        output = super().encode(pixel_values)
        summary = None if output.summary is None else 7 * output.summary
        return TeacherOutput(summary, 7 * output.features - 20)


def trunk_gradient(recipe_file: str, kind: str) -> dict[str, Tensor]:
    """Return the gradient of the first step after PHI-S and dispersion have settled in calibration."""
    settings = [
        "standardization={calibration_steps: 8, estimation_steps: 0}",
        "partitions.low.batch_size=8",  # as many tokens as PHI-S needs for distinct principal axes
        *(f"teachers.{name}.kind={kind}" for name in ("semantic", "segmenter")),
    ]
    distiller = Distiller(load_recipe(recipe_file, settings), Path(kind))
    distiller.build()
    distiller.parts.statistics.begin_step(0)
    distiller.parts.student.train()
    batch, example = next(distiller.parts.source.examples(lambda: distiller.parts.plan.steps(0, 1)))
    batch_losses(distiller.parts, batch, example)["loss"].backward()
    named = distiller.parts.model.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None and not name.startswith("radio_model.adaptors.")}


def test_units_and_origin_of_a_teacher_do_not_reach_the_trunk(
    recipe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(modeling_radio.training.teachers.registry.TEACHER_KINDS, "changed", ChangedTeacher)
    plain, changed = (trunk_gradient(recipe_file, kind) for kind in ("tiny", "changed"))
    largest = max(gradient.abs().max().item() for gradient in plain.values())
    assert largest > 1e-3
    for name, gradient in plain.items():
        torch.testing.assert_close(changed[name], gradient, rtol=0, atol=1e-3 * largest)


@pytest.mark.parametrize("is_exported", ["true", "false"])
def test_export_has_no_trace_of_noise_and_reparametrization(recipe_file: str, is_exported: str) -> None:
    plain = tiny.distil(recipe_file, "plain", "schedule.num_steps=2")
    final = tiny.distil(recipe_file, "full", *EVERYTHING, "schedule.num_steps=5", f"ema.is_exported={is_exported}")
    assert load_file(final / "model.safetensors").keys() == load_file(plain / "model.safetensors").keys()
    files = ("config.json", "preprocessor_config.json")
    assert all((final / name).read_text() == (plain / name).read_text() for name in files)
    # The folder answers as the network that was trained does, once its noise is off.
    distiller = Distiller(
        load_recipe(recipe_file, [*EVERYTHING, "schedule.num_steps=5", f"ema.is_exported={is_exported}"]), Path("full")
    )
    distiller.build()
    assert distiller.resumed_from is not None
    distiller._load(distiller.resumed_from)
    trained = (distiller.parts.ema.module if is_exported == "true" else distiller.parts.model).eval()
    pixel_values = torch.rand(2, 3, 48, 32)
    exported = RadioModel.from_pretrained(final)(pixel_values, feature_format="NCHW")
    output = trained(pixel_values, feature_format="NCHW")
    torch.testing.assert_close(exported.features, output.features, rtol=1e-4, atol=1e-5)
    for name, standardizer in distiller.parts.statistics.standardizers().items():
        own_space = standardizer.invert(output.adaptors[name].features)
        torch.testing.assert_close(exported.adaptors[name].features, own_space, rtol=1e-4, atol=1e-4)


def test_warm_started_student_predicts_what_it_predicted_in_the_standardized_space(recipe_file: str) -> None:
    start = tiny.distil(recipe_file, "first", "schedule.num_steps=3")
    settings = [f"student.init_from={start}", "seed=9", *EVERYTHING, "views.flip_probability=0"]
    distiller = Distiller(load_recipe(recipe_file, settings), Path("second"))
    distiller.build()
    pixel_values = torch.rand(2, 3, 48, 64)
    source = RadioModel.from_pretrained(start)(pixel_values, feature_format="NCHW")
    for network in (distiller.parts.model.eval(), distiller.parts.ema.module):
        output = network(pixel_values, feature_format="NCHW")
        torch.testing.assert_close(output.features, source.features, rtol=1e-4, atol=1e-5)
        for name, standardizer in distiller.parts.statistics.standardizers().items():
            expected = standardizer.standardize(source.adaptors[name].features)
            torch.testing.assert_close(output.adaptors[name].features, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(output.adaptors["semantic"].summary, source.adaptors["semantic"].summary)


def test_resumed_run_does_not_need_its_start_any_more(recipe_file: str) -> None:
    start = tiny.distil(recipe_file, "first", "schedule.num_steps=2")
    setting = f"student.init_from={start}"
    tiny.distil(recipe_file, "second", setting, stop_at=2)
    start.rename("elsewhere")
    assert tiny.distil(recipe_file, "second", setting) is not None
    assert main(["--recipe", recipe_file, "--output", "third", setting]) == 1


STAGES = """
stages:
  - {name: low, schedule: {num_steps: 5}}
  - name: high
    schedule: {num_steps: 4, warmup_steps: 1}
    optimizer: {trunk_frozen_steps: 2}
    partitions: [{name: high, sizes_px: [64], batch_size: 3}]
    teachers:
      - {name: newcomer, kind: tiny, options: {summary_dim: 5, feature_dim: 7}}
      - {name: semantic, kind: tiny, options: {summary_dim: 10, feature_dim: 12}}
"""


@pytest.fixture
def staged_file(recipe_file: str) -> str:
    Path(recipe_file).write_text(tiny.RECIPE + STAGES)
    return recipe_file


def test_stages_follow_each_other(staged_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", staged_file, "--output", "run"]) == 0
    said = capsys.readouterr().out
    assert "Stage 1 of 2: low" in said
    assert "Stage 2 of 2: high" in said
    assert (
        "Start from 'run/stages/low/final', a RADIO checkpoint.\n"
        "  taken: trunk; heads of semantic; class tokens of semantic\n"
        "  added: heads of newcomer\n"
        "  left out: heads of segmenter\n"
    ) in said
    assert {path.name for path in Path("run").iterdir()} == {"recipe.yaml", "run.txt", "stages", "final"}
    assert (Path("run/final/model.safetensors")).read_bytes() == Path(
        "run/stages/high/final/model.safetensors"
    ).read_bytes()
    assert RadioModel.from_pretrained("run/final").config.adaptor_names == ["newcomer", "semantic"]
    assert load_recipe("run/recipe.yaml").stages == load_recipe(staged_file).stages
    lineage = Lineage.find(Path("run/final"))
    assert {each.name for each in lineage.teachers} == {"semantic", "segmenter", "newcomer"}
    assert len(lineage.images) == 1
    assert lineage.weights == []


def test_trunk_of_a_stage_waits_and_its_schedule_and_statistics_start_anew(staged_file: str) -> None:
    assert run_recipe(load_recipe(staged_file), Path("run"), stop_at=7) is None
    first = load_file("run/stages/low/final/model.safetensors")
    second = tiny.tensors_of(Path("run/stages/high/checkpoints/step_00000002"))
    trunk, head = "radio_model.model.blocks.0.mlp.fc1.weight", "radio_model.adaptors.newcomer.feat_mlp.fc1.weight"
    assert torch.equal(second[f"student/{trunk}"], first[trunk])
    assert head not in first
    whole = (2 + 2) * 3 * 16  # calibration and two steps, 3 images; what lies beside the images does not count
    assert 0.8 * whole < second["statistics/features.semantic.count"] <= whole
    run_recipe(load_recipe(staged_file), Path("run"), stop_at=8)
    third = tiny.tensors_of(Path("run/stages/high/checkpoints/step_00000003"))
    assert not torch.equal(third[f"student/{trunk}"], first[trunk])


@pytest.mark.parametrize("stop_at", [3, 5, 7])
def test_staged_run_resumes_in_the_right_stage(
    staged_file: str, stop_at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(staged_file)
    run_recipe(recipe, Path("whole"))
    assert run_recipe(recipe, Path("parts"), stop_at=stop_at) is None
    capsys.readouterr()
    assert run_recipe(recipe, Path("parts")) == Path("parts/final")
    assert ("Stage 1" in capsys.readouterr().out) == (stop_at < 5)
    for stage, step in (("low", 5), ("high", 4)):
        tiny.assert_same_tensors(*(tiny.last_state(f"{run}/stages/{stage}", step) for run in ("whole", "parts")))


def test_finished_staged_run_exports_its_last_stage_again(staged_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_recipe(load_recipe(staged_file), Path("run"))
    before = tiny.last_state("run/stages/high", 4)
    capsys.readouterr()
    run_recipe(load_recipe(staged_file, ["export.feature_normalizer=true"]), Path("run"))
    said = capsys.readouterr().out
    assert "Stage 1" not in said
    assert "Stage 2 of 2" in said
    tiny.assert_same_tensors(before, tiny.last_state("run/stages/high", 4))
    assert RadioModel.from_pretrained("run/final").radio_model.feature_normalizer is not None


def test_staged_run_with_another_recipe_is_refused_before_anything_runs(staged_file: str) -> None:
    run_recipe(load_recipe(staged_file), Path("run"), stop_at=6)
    with pytest.raises(RecipeError, match=r"schedule.warmup_steps: 1 -> 0"):
        run_recipe(load_recipe(staged_file, ["stages.high.schedule.warmup_steps=0"]), Path("run"))
    with pytest.raises(RecipeError, match=r"'run' .*--output"):
        run_recipe(load_recipe(staged_file), Path("run"), is_restart=True)


def test_stages_that_are_over_know_a_change_that_was_allowed(
    staged_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--recipe", staged_file, "--output", "run"]
    assert main([*arguments, "--stop-at", "6"]) == 0
    before = tiny.last_state("run/stages/low", 5)
    arguments.append("optimizer.learning_rate=1e-4")
    assert main([*arguments, "--stop-at", "7", "--allow-changes", "stages.low.optimizer.learning_rate"]) == 1
    assert "Did you mean 'optimizer.learning_rate'?" in capsys.readouterr().err
    assert main([*arguments, "--stop-at", "7", "--allow-changes", "optimizer.learning_rate"]) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert "Stage 1" not in capsys.readouterr().out
    tiny.assert_same_tensors(before, tiny.last_state("run/stages/low", 5))


def test_stages_draw_different_images(staged_file: str) -> None:
    low, high = stage_recipes(load_recipe(staged_file))
    assert low.seed != high.seed


WEIGHED_STAGES = """
stages:
  - {name: weighed, balancing: {method: adaptive}, contrastive: {weight: 0.1, bank_size: 0}}
  - {name: later, balancing: {method: adaptive, start_step: 2}, contrastive: {weight: 0.1}}
"""


def test_every_stage_weighs_and_contrasts_in_its_own_way(recipe_file: str) -> None:
    Path(recipe_file).write_text(tiny.RECIPE + WEIGHED_STAGES)
    short = ["schedule={num_steps: 4, warmup_steps: 1}", "logging.every_steps=1", "checkpoints.every_steps=4"]
    short += ["teachers.semantic.role=semantic", "teachers.segmenter.role=task"]
    fixed = ["stages.later.balancing.method=fixed", "stages.later.contrastive.weight=0"]
    run_recipe(load_recipe(recipe_file, short), Path("run"))
    run_recipe(load_recipe(recipe_file, [*short, *fixed]), Path("off"))
    weights, losses = {}, {}
    for stage in ("run/stages/weighed", "run/stages/later", "off/stages/later"):
        series = RunHistory(Path(stage, "history.jsonl"), 4).series()
        losses[stage] = {key.partition("/")[0] for key in series if "contrastive/" in key}
        weights[stage] = [value for key, (_, values) in series.items() if key.startswith("weight/") for value in values]
    assert list(losses.values()) == [{"contrastive"}, {"contrastive"}, set()]
    assert [any(abs(value - 1) > 1e-3 for value in each) for each in weights.values()] == [True, True, False]
    first, second = (
        [tiny.last_state(f"{run}/stages/{each}", 4) for run in ("run", "off")] for each in ("weighed", "later")
    )
    tiny.assert_same_tensors(*first)
    key = "student/radio_model.model.blocks.0.attn.qkv.weight"
    assert not torch.equal(second[0][key], second[1][key])
