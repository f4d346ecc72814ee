"""The command: cards and changes in, Markdown tables out, nothing loaded."""

import re
from pathlib import Path

import pytest
from elsewhere import Elsewhere
from folders import OURS
from tiny_plans import RECIPE

from modeling_radio.training.plan import main


def write_recipe(folder: Path, text: str = RECIPE) -> str:
    (folder / "tiny.yaml").write_text(text)
    return str(folder / "tiny.yaml")


def test_command_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_sam3 = "\n".join(line for line in RECIPE.splitlines() if "name: sam3" not in line)
    path = write_recipe(
        tmp_path, without_sam3 + "\nstages:\n  - {name: first, schedule: {num_steps: 3}}\n  - {name: second}\n"
    )
    partitions = "partitions=[{name: low, sizes_px: [64], batch_size: 8}, {name: high, sizes_px: [128], batch_size: 2}]"
    assert main(["--recipe", path, "--gpus", "2", "--price", "3", partitions]) == 0
    first = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in first[:3]] == ["Time", "Memory", "Cost"]
    hours = re.search(r"on 2 H100, (\S+) GPU hours", first[0])
    assert hours is not None
    assert f"{3 * float(hours[1]):.2f}" in first[2]
    assert main(["--recipe", path, "--gpus", "2", "--verbose", partitions]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[:2] == first[:2]
    for text in (
        "| A100 | 312 | 80 | yes |",
        "| RTX-4090 | 165 | 24 | yes |",
        "| siglip2-g | 1,164 | 4.3 |",
        "| first | low | 8 | 64 |",
        "| second | high | 2 | 128 |",
        "35% of the",
        "| weights of teachers, at least | network once, and disk | 4.65 GB |",
        "| files of images, 130 read in all | network, or disk | 13.0 MB |",
    ):
        assert text in output
    assert main(["--recipe", path, "--gpus", "1,2,4", partitions]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| `tiny`, stage second, GPUs | 1 | 2 | 4 |"
    assert "| exchange of gradients, s | 0 | " in "\n".join(lines)
    # Two of the four ranks have no image of "high", and so half of the time a pass for nothing.
    assert "| passes without an image | 0% | 0% | 25% |" in lines


def test_a_card_and_assumptions_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", "demo", "--gpus", "1", "--mfu", "0.1", "--image-kb", "20", "--verbose"]
    assert main([*arguments, "--gpu", "Mine:50:0.2"]) == 0
    output = capsys.readouterr().out
    for text in ("10% of the peak", "| Mine | 50.0 | 0.2 | no |", "20 kB for an image"):
        assert text in output
    assert "A100" not in output


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--gpus", "0"], "`gpus`"),
        (["--mfu", "2"], "`mfu`"),
        (["--gpu", "h100"], "`gpu`"),
        (["--gpu", "Mine:100"], "`gpu`"),
        (["partitions.low.rank_share=3"], "rank_share"),
        (["teachers.sam3.kind=mine:Mine"], "`teachers.sam3.kind`"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recipe", write_recipe(tmp_path), *arguments]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("radio plan: error: ")]
    assert name in error


WATCHED = """
import os, socket, sys
from huggingface_hub import constants

constants.HF_HUB_OFFLINE = False
os.environ |= {"HOME": os.getcwd(), "PATH": ""}
root, *ours = sys.argv[1:]
for name in ours:
    del sys.modules[name]
sys.path.insert(0, root)
assert not {"datasets", "timm"} & sys.modules.keys()
from modeling_radio.training.plan import main

def refuse(*arguments):
    raise AssertionError("the network was asked")

socket.socket.connect = refuse
assert main(["--recipe", "demo", "--gpu", "L4"]) == 0
assert not {"datasets", "timm"} & sys.modules.keys()
"""


def test_nothing_is_fetched_and_no_data_set_opened(elsewhere: Elsewhere, tmp_path: Path) -> None:
    run = elsewhere.run(WATCHED, tmp_path, Path(__file__).parents[2], *OURS)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "on 8 L4, " in run.stdout
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
