"""The command, from a file to a table, on the tiny distillation."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from documentation import ROOT
from toy_studies import STUDY, toy_held_out, write_study

from modeling_radio.evaluation.students import StudentEvaluation
from modeling_radio.evaluation.tasks.registry import find_task
from modeling_radio.studies.held_out import HeldOut
from modeling_radio.studies.raw_results import load_results
from modeling_radio.studies.report import build_report
from modeling_radio.studies.study import STUDIES_DIR, list_studies, open_study


main = importlib.import_module("modeling_radio.studies.__main__").main


@pytest.fixture
def study(tiny_world, recipe_file, monkeypatch):
    """The file of a study of two arms and two seeds of two steps."""
    monkeypatch.setattr(HeldOut, "load", toy_held_out)
    monkeypatch.setattr(
        StudentEvaluation, "measure_backbone", lambda _, evaluation: find_task("knn").measure(evaluation)
    )
    return write_study(recipe_file)


def test_a_study_runs_from_its_file_to_its_table(study, load, capsys):
    assert main([study, "--output", "out", "--report", "report.md"]) == 0
    path = Path(study).with_suffix(".jsonl")
    found = load(open_study(study)).results
    assert list(found) == [("plain", 0), ("adaptive", 0), ("plain", 1), ("adaptive", 1)]
    plain, adaptive = found["plain", 0], found["adaptive", 0]
    assert plain.sums["dense_error/semantic"] != adaptive.sums["dense_error/semantic"], "the change has an effect"
    assert {"distil", "measure"} == set(plain.run["seconds"])
    assert plain.run["machine"]
    assert path.with_suffix(".webp").is_file()
    printed = capsys.readouterr().out
    assert "| seeds | 0, 1 | 0, 1 |" in printed
    assert "| **dense_error/worst** (primary) |" in printed
    assert Path("report.md").read_text().startswith("## study\n\nDoes it matter?")
    before = path.read_bytes()
    assert main([study, "--output", "elsewhere"]) == 0  # all is there
    assert not Path("elsewhere").exists()
    assert path.read_bytes() == before


def test_the_same_arm_gives_the_same_numbers(study, load):
    """Seed for seed, arms differ in nothing but their change."""
    found = []
    for output in ("out", "again"):
        assert main([study, "--output", output, "--seeds", "3"]) == 0
        run = load(open_study(study)).results["plain", 3]
        found.append((run.sums, run.numbers))
        Path(study).with_suffix(".jsonl").unlink()
    assert found[0] == found[1]


def test_without_training_nothing_is_made(study, capsys):
    assert main([study, "--no-train"]) == 0
    assert "study: no raw results yet, 4 runs to make." in capsys.readouterr().out
    assert not Path(study).with_suffix(".jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seeds", "0,0"], "`seeds`"),
        (["--seeds", "[]"], "`seeds`"),
        (["--seeds", "3", "--no-train"], "`seeds`"),
        (["again/study.yaml"], "`studies`"),
        (["bad.yaml"], "radio study: error: Study 'bad.yaml': `seeds`"),
    ],
)
def test_bad_input_is_one_line_before_the_first_run(study, recipe_file, arguments, named, capsys):
    Path("again").mkdir()
    Path("again/study.yaml").write_text(Path(study).read_text())
    Path("bad.yaml").write_text(STUDY.replace("%s", recipe_file).replace("seeds: [0, 1]", "seeds: zero"))
    assert main([study, *arguments, "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert not Path("out").exists()
    assert not Path(study).with_suffix(".jsonl").exists()


def test_a_missing_package_is_named_before_the_first_run(study, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scipy", None)  # as where only the extra `train` is installed
    assert main([study, "--output", "out"]) == 1
    assert 'the package scipy is not installed: run `pip install "modeling-radio[tasks]"`' in capsys.readouterr().err
    assert not Path("out").exists()


NOT_RUN_AGAIN = ("full_step", "regularizers")
"""Studies with arms that changed after they were run."""
NOT_RUN_YET = ("one_teacher_an_image",)
"""Studies that are announced."""


@pytest.mark.parametrize("name", list_studies())
def test_our_studies_are_all_run_and_documented(name):
    opened = open_study(name)
    if name not in NOT_RUN_YET:
        report = build_report(opened, load_results(opened))
        assert ("Not finished" in report) == (name in NOT_RUN_AGAIN)
        assert re.search(", p [=<] ", report)
    assert (STUDIES_DIR / f"{name}.webp").is_file() == (name not in NOT_RUN_YET)
    page = (ROOT / "docs" / "explanation" / "studies.md").read_text(encoding="utf-8")
    assert f"## {name}\n" in page
    assert opened.study.question.strip() in " ".join(page.split())
