from types import SimpleNamespace

import pytest
import torch

from model_cards.results import STUDENT, Results
from training import demo, precision
from training.demo import Clock, main, reachable_teachers
from training.recipe import load_recipe


def test_clock_adds_up_phases_and_says_each(capsys):
    clock = Clock()
    for name in ("evaluate", "draw", "evaluate"):
        with clock.phase(name):
            pass
    assert list(clock.seconds) == ["evaluate", "draw"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["evaluate", "draw", "evaluate"]


def test_without_npm_the_detector_is_replaced(monkeypatch):
    recipe = load_recipe("demo")
    kinds = ["efficientnet-lite0", "dinov2-s-saliency", "mobilenet-v2"]
    monkeypatch.setattr(demo, "demo_teachers", lambda: [{"name": kind, "kind": kind} for kind in kinds])
    assert [entry.kind for entry in reachable_teachers(recipe)] == kinds
    kinds[2] = "nanodet-g"
    assert reachable_teachers(recipe) == recipe.teachers


@pytest.mark.parametrize(("is_faster", "expected"), [(True, ("bf16", "bfloat16")), (False, ("no", "float32"))])
def test_the_faster_precision_is_taken_for_student_and_teachers(is_faster, expected, monkeypatch):
    monkeypatch.setattr(demo, "is_bfloat16_faster", lambda: is_faster)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    recipe = demo.in_faster_precision(load_recipe("demo"))
    assert (recipe.mixed_precision, *{entry.precision for entry in recipe.teachers}) == expected


def test_precision_is_timed_on_this_machine(monkeypatch):
    assert isinstance(precision.is_bfloat16_faster(), bool)
    monkeypatch.setattr(precision, "_linear_seconds", {torch.float32: 2.0, torch.bfloat16: 1.0}.get)
    assert precision.is_bfloat16_faster()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "dmo"], "Did you mean 'demo'?"),
        (["schedule.num_step=3"], "Did you mean 'num_steps'?"),
        (["student.config.hiden_size=3"], "Did you mean 'hidden_size'?"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "reachable_teachers", lambda recipe: recipe.teachers)
    teacher = SimpleNamespace(summary_dim=4, feature_dim=4)
    monkeypatch.setattr(demo, "build_teachers", lambda entries: {entry.name: teacher for entry in entries})
    assert main(["--output", str(tmp_path / "demo"), *arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("demo: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.packages
def test_the_whole_demo_in_small(tmp_path, capsys):
    output = tmp_path / "demo"
    cache = f"views.cache_dir={tmp_path / 'cache'}"
    small = ["data.num_images=64", "standardization.calibration_steps=1", "logging.every_steps=1", cache]
    assert main(["--output", str(output), "--seeds", "0,1", "--steps", "3", *small]) == 0
    results = Results.load(output / "results.json")
    student = [found for found in results.measurements if found.model == STUDENT]
    assert {found.seed for found in student} == {0, 1}
    for seed in (0, 1):
        folder = output / f"seed-{seed}"
        assert {"features.png", "losses.png", "recipe.yaml"} <= {path.name for path in folder.iterdir()}
        assert "One training seed." in (folder / "final" / "README.md").read_text(encoding="utf-8")
    assert f"| {STUDENT}" in capsys.readouterr().out
