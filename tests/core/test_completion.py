"""The tab key completes commands, flags and their values at once, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_radio.core import completion


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("radio dist", ["distill"]),
        ("radio finetune folder --task imag", ["image-classification"]),
        ("radio evaluate folder --comp", ["--compare"]),
        ("radio export --to w", ["web"]),
        ("radio export --to web folder --prec", ["--precision"]),
        ("radio nothing --x", []),
    ],
)
def test_the_shell_is_answered(line, expected, tmp_path):
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')")
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "|",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
    }
    command = [sys.executable, "-m", "modeling_radio_cli"]
    subprocess.run(command, env=os.environ | asked, check=True, cwd=tmp_path)
    answer = (tmp_path / "answer").read_text()
    assert [word.strip() for word in answer.split("|") if word] == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell, capsys):
    assert completion.main([shell]) == 0
    assert "radio" in capsys.readouterr().out
