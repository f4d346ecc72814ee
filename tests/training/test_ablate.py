"""The command, from a file to a table, on the tiny distillation."""

import re
import sys
from pathlib import Path

import pytest
from documentation import ROOT
from toy_studies import STUDY, toy_held_out, write_study

from training.evaluation.students import StudentEvaluation
from training.evaluation.tasks.registry import TASKS
from training.studies import __main__ as studies_command
from training.studies.held_out import HeldOut
from training.studies.raw_results import RunResult, load_results
from training.studies.report import build_report
from training.studies.study import STUDIES_DIR, list_studies, open_study


@pytest.fixture
def study(tiny_world: None, recipe_file: str, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of a study of two arms and two seeds of two steps."""
    monkeypatch.setattr(HeldOut, "load", toy_held_out)
    monkeypatch.setattr(
        StudentEvaluation, "measure_backbone", lambda self, evaluation: TASKS["knn"].measure(evaluation)
    )
    return write_study(recipe_file)


def results_of(study: str) -> dict[tuple[str, int], RunResult]:
    results = load_results(open_study(study))
    assert results is not None
    return dict(results.results)


def test_a_study_runs_from_its_file_to_its_table(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert studies_command.main([study, "--output", "out", "--report", "report.md"]) == 0
    path = Path(study).with_suffix(".jsonl")
    found = results_of(study)
    assert list(found) == [("plain", 0), ("dropping", 0), ("plain", 1), ("dropping", 1)]
    plain, dropping = found["plain", 0], found["dropping", 0]
    assert plain.sums["dense_error/semantic"] != dropping.sums["dense_error/semantic"]  # what differs has an effect
    assert {"distil", "measure"} == set(plain.run["seconds"])
    assert plain.run["machine"]
    assert path.with_suffix(".webp").is_file()
    printed = capsys.readouterr().out
    assert "| seeds | 0, 1 | 0, 1 |" in printed
    assert "| **dense_error/worst** (primary) |" in printed
    assert Path("report.md").read_text().startswith("## study\n\nDoes it matter?")
    before = path.read_bytes()
    assert studies_command.main([study, "--output", "elsewhere"]) == 0  # all is there
    assert not Path("elsewhere").exists()
    assert path.read_bytes() == before


def test_the_same_arm_gives_the_same_numbers(study: str, recipe_file: str) -> None:
    """Seed for seed, arms differ in nothing but their change."""
    assert studies_command.main([study, "--output", "out", "--seeds", "3"]) == 0
    first = results_of(study)["plain", 3]
    Path(study).with_suffix(".jsonl").unlink()
    assert studies_command.main([study, "--output", "again", "--seeds", "3"]) == 0
    again = results_of(study)["plain", 3]
    assert (again.sums, again.numbers) == (first.sums, first.numbers)


def test_a_missing_package_is_missed_before_the_first_run(
    study: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)  # as where only the extra `train` is installed
    assert studies_command.main([study, "--output", "out"]) == 1
    assert 'the package scipy is not installed: run `pip install -e ".[tasks]"`' in capsys.readouterr().err
    assert not Path("out").exists()


def test_without_training_nothing_is_made(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert studies_command.main([study, "--no-train"]) == 0
    assert "study: no raw results yet, 4 runs to make." in capsys.readouterr().out
    assert not Path(study).with_suffix(".jsonl").exists()


def test_a_bad_file_is_one_line_before_the_first_run(
    study: str, recipe_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path(recipe_file).with_name("bad.yaml")
    bad.write_text(STUDY.replace("%s", recipe_file).replace("seeds: [0, 1]", "seeds: zero"))
    assert studies_command.main([study, str(bad), "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"ablate: error: Study '{bad}': `seeds` must be [an integer, ...], got 'zero'." in error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,0"], "`seeds` must be numbers that are all different, got [0, 0]"),
        (["--seeds", "[]"], "`seeds` must be"),
        (["--seeds", "3", "--no-train"], "`seeds` must be left out where nothing is run, got [3]"),
        (["again/study.yaml"], "`studies` must be studies of different names, got ['study', 'study']"),
    ],
)
def test_bad_options_are_one_line_before_the_first_run(
    study: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("again").mkdir()
    Path("again/study.yaml").write_text(Path(study).read_text())
    assert studies_command.main([study, *arguments, "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not Path("out").exists()
    assert not Path(study).with_suffix(".jsonl").exists()


NOT_RUN_AGAIN = ("full_step", "regularizers")
"""Studies with arms that changed after they were run."""


@pytest.mark.parametrize("name", list_studies())
def test_our_studies_are_all_run_and_told(name: str) -> None:
    opened = open_study(name)
    report = build_report(opened, load_results(opened))
    assert ("Not finished" in report) == (name in NOT_RUN_AGAIN)
    assert re.search(", p [=<] ", report)
    assert (STUDIES_DIR / f"{name}.webp").is_file()
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert f"## {name}\n" in page
    assert opened.study.question.strip() in " ".join(page.split())
