"""Steps of recipes beside their plan, and the script for a GPU that runs them."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import all as all_benchmarks
from benchmarks import planned
from benchmarks.measuring import ROOT, MeasuringSettings


SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PYTHON = """#!/bin/sh
echo "$@"
case "$*" in *planned*) exit 3 ;; esac
"""
"""Stands for Python: tells what would run, and fails in one part."""


def test_all_parts_run_for_eight_minutes_at_most(tmp_path: Path) -> None:
    python, results = tmp_path / "python", tmp_path / "results"
    python.write_text(PYTHON, encoding="utf-8")
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "RESULTS": str(results), "DEVICE": "cpu"}
    done = subprocess.run(["bash", SCRIPT], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("Failed: step;")
    text = SCRIPT.read_text(encoding="utf-8")
    parts = re.findall(r"^PARTS=\((.*)\)$", text, re.MULTILINE)[0].split()
    words = {part: (results / f"{part}.txt").read_text(encoding="utf-8").split() for part in parts}
    assert words.pop("tests") == ["-m", "pytest", "-q", "-n", "0", "-m", "gpu"]
    assert words["inference"][1] == "benchmarks.all"
    assert all_benchmarks.COMMAND.read(words.pop("inference")[2:]).quick
    _, module, *arguments = words.pop("step")
    assert module == "benchmarks.planned"
    assert planned.COMMAND.read(arguments) == MeasuringSettings(quick=True)
    assert not words
    assert int(re.findall(r"^SECONDS_OF_PART=(\d+)$", text, re.MULTILINE)[0]) <= 8 * 60
    assert all(f"\n#     {part} " in text for part in parts)
    wrong = subprocess.run(["bash", SCRIPT, "nothing"], check=False, capture_output=True, env=environment)
    assert wrong.returncode == 2


@pytest.mark.parametrize("variant", planned.VARIANTS, ids=str)
def test_steps_are_those_of_recipes(variant: planned.Variant, tmp_path: Path) -> None:
    stage = planned.recipe_of(variant, tmp_path, "cuda", is_small=False)
    assert {entry.options["weights"] for entry in stage.teachers} == {"random"}
    assert [each.name for each in stage.partitions] == ["low", "high"]
