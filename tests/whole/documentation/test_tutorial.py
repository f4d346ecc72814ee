"""The tutorial runs from top to bottom: each block in one folder, tuning for a few steps, without `radio demo`."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from documentation import ROOT, Block, blocks


pytestmark = pytest.mark.tour
NOT_HERE = ("python -m venv", "source ", "pip install", "radio demo")
"""Lines that install, or train for minutes; `test_command_lines` reads them."""


def commands(block: Block) -> list[list[str]]:
    """Return the words of each line of a shell block that runs here."""
    lines = block.text.replace("\\\n", " ").replace("--steps 150", "--steps 4").splitlines()
    return [shlex.split(line)[1:] for line in lines if not line.startswith(NOT_HERE)]


def run(*words: str, folder) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_block_runs_after_those_above_it(tmp_path):
    for block in blocks("bash", "python"):
        if block.page != "docs/tutorial.md":
            continue
        if block.language == "python":
            run("-c", block.text, folder=tmp_path)
        else:
            for words in commands(block):
                run("-m", "modeling_radio", *words, folder=tmp_path)
    labels = json.loads((tmp_path / "runs" / "parts" / "final" / "config.json").read_text())["id2label"]
    assert sorted(labels.values()) == ["gear", "nut", "plate", "star", "washer"]
    assert (tmp_path / "after.html").is_file()
