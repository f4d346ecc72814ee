"""The command runs what is missing, writes the page, and refuses names that are none."""

from pathlib import Path

import pytest

from training.demo_kit.finetune_grid import main
from training.demo_kit.tuning.experiments import EXPERIMENTS, METHODS, arms_of
from training.demo_kit.tuning.raw_results import REPORT, RESULTS_DIR
from training.demo_kit.tuning.report import build_report
from training.demo_kit.tuning.runs import Grid


def test_without_training_the_page_alone_is_written(tmp_path, capsys):
    command = ["--results", str(tmp_path / "raw"), "--report", str(tmp_path / "page.md"), "--no-train"]
    assert main(command) == 0
    page = (tmp_path / "page.md").read_text()
    assert [name for name in EXPERIMENTS if f"## {name}\n" in page] == list(EXPERIMENTS)
    assert "Wrote" in capsys.readouterr().out


def test_the_committed_page_is_that_of_the_committed_results():
    """`python -m training.demo_kit.finetune_grid --no-train` was run after the last change."""
    assert REPORT.read_text(encoding="utf-8") == build_report(RESULTS_DIR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "poetry"], "`tasks` must be some of image-classification, multi-label"),
        (["--tasks", "multi-label", "--arms", "LoRA after head"], "`arms` must be some of head; LoRA; DoRA"),
    ],
)
def test_names_that_are_none(arguments, message, capsys):
    assert main(arguments) != 0
    assert message in capsys.readouterr().err


def test_names_fit_into_a_list():
    assert not [arm for name in EXPERIMENTS for arm in (name, *arms_of(EXPERIMENTS[name])) if "," in arm]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_has_valid_settings(name, tmp_path):
    grid = Grid(tmp_path, tmp_path, tmp_path, tmp_path)
    arms = arms_of(EXPERIMENTS[name])
    assert set(METHODS) <= set(arms)
    for arm in arms:
        settings = grid.settings(name, arm, 0)
        assert settings.task == EXPERIMENTS[name].task
    outputs = {grid.settings(name, arm, 0).output for arm in arms}
    assert len(outputs) == len(arms)  # no two names have one folder


def test_words_are_tuned_on_the_student_that_has_them(tmp_path):
    grid = Grid(tmp_path / "student", tmp_path / "words", tmp_path, tmp_path)
    folders = {name: Path(grid.settings(name, "LoRA", 0).checkpoint).name for name in EXPERIMENTS}
    assert [name for name, folder in folders.items() if folder == "words"] == ["zero-shot-image-classification"]
