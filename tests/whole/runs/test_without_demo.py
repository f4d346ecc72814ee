"""The demo is a plugin: everything else works where its folder is missing.

`tests/test_architecture.py` shows that no other folder imports it; here nothing that is named by a path finds it.
"""

import sys

import pytest
from tiny_distillation import distil, write_command_recipe

from modeling_radio.data.training_images import build_images
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.evaluate import main as evaluate
from modeling_radio.evaluation.settings import DataOptions
from modeling_radio.metrics.results import Results
from modeling_radio.training.plan import main as plan
from modeling_radio.training.teachers.registry import build_teacher


@pytest.fixture(autouse=True)
def _without_demo(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("modeling_radio.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "modeling_radio.demo", None)  # importing it fails as if it were not there


def test_own_teachers_and_images_are_planned_trained_and_evaluated(tmp_path, class_folders, capsys, one_thread):
    recipe, results = str(write_command_recipe(tmp_path)), tmp_path / "results.json"
    assert plan(["--recipe", recipe, "--gpus", "1"]) == 0
    assert "it fits" in capsys.readouterr().out
    checkpoint = distil(recipe, str(tmp_path / "run"), "schedule.num_steps=2", "schedule.warmup_steps=1")
    arguments = [str(checkpoint), "--data", str(class_folders), "--tasks", "knn", "--output", str(results)]
    assert evaluate([*arguments, "--cache", str(tmp_path / "cache"), "--num-workers", "0"]) == 0
    assert {found.dataset for found in Results.load(results).measurements} == {"pets"}


def test_what_needs_the_demo_names_the_setting_and_the_missing_module(capsys):
    for ask, setting in (
        (lambda: build_images("demo", size=8), "`data.source` 'demo'"),
        (lambda: build_teacher("t", kind="efficientnet-lite0"), "`kind` 'efficientnet-lite0'"),
        (lambda: open_data("demo", DataOptions(), size_px=8), "`data` 'demo'"),
    ):
        with pytest.raises(ValueError, match=rf"{setting}.*modeling_radio\.demo"):
            ask()
    assert plan(["--recipe", "demo"]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "modeling_radio.demo" in errors
