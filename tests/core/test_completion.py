"""The tab key completes commands, flags and their values at once, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


@pytest.fixture
def completions(tmp_path):
    """Return a function of what a shell is answered."""

    def ask(line: str) -> list[str]:
        asked = {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "|",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        }
        command = [sys.executable, "-m", "modeling_radio_cli"]
        subprocess.run(command, env=os.environ | asked, check=True, cwd=tmp_path)
        return [word.strip() for word in (tmp_path / "answer").read_text().split("|") if word]

    return ask


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("radio dist", ["distill"]),
        ("radio finetune folder --task imag", ["image-classification"]),
        ("radio serve folder --max-bat", ["--max-batch"]),
        ("radio export --to w", ["web"]),
    ],
)
def test_the_shell_is_answered_without_torch(completions, line, expected, tmp_path):
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')")
    assert completions(line) == expected
