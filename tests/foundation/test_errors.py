"""The words are `modeling_radio`'s; the package is opened only where something is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import check_choice, did_you_mean, first_few


def test_a_wrong_choice_is_answered_with_the_nearest():
    check_choice("kind", "dinov3", ["dinov3", "sam3"])
    with pytest.raises(KeyError, match=r"`kind` must be one of \['dinov3', 'sam3'\], got 'sam'. Did you mean 'sam3'\?"):
        check_choice("kind", "sam", ["dinov3", "sam3"], error=KeyError)
    assert did_you_mean("dinov", ["dinov3", "sam3"]) == " Did you mean 'dinov3'?"


def test_long_lists_end_with_dots():
    assert first_few([], 2) == ""
    assert first_few([1, 2], 2) == "1, 2"
    assert first_few(["a", "b", "c"], 2) == "a, b, ..."


DISTILL = """
from training.distill import COMMAND
COMMAND.read(["--recipe", "demo", "optimizer.learning_rate=1e-4"]).load_recipe()
"""
FINETUNE = """
from training.finetune import COMMAND
COMMAND.read(["x", "--task", "depth-estimation", "--data", "y"])
"""


@pytest.mark.parametrize("program", [DISTILL, FINETUNE], ids=["distill", "finetune"])
def test_commands_read_their_options_without_transformers(program):
    check = "import sys\nassert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program + check], check=True, cwd=Path(__file__).parents[2])
