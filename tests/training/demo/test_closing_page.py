import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from model_cards.build import COMMAND as BUILD
from model_cards.results import Measurement, Results, Source
from training.demo.add_words import COMMAND as ADD_WORDS
from training.demo.closing_page import next_steps, write_closing_page
from training.distill import COMMAND as DISTILL
from training.evaluate import COMMAND as EVALUATE
from training.figures.page import Drawing
from training.finetune import COMMAND as FINETUNE
from training.publish import COMMAND as PUBLISH


NASTY = "<script>alert(1)</script>"


@pytest.fixture
def page(tmp_path):
    picture = tmp_path / "features.png"
    Image.new("RGB", (30, 20), "red").save(picture)
    results = Results(
        [Measurement("student", "knn", "accuracy", "objects", 0.612, seed=0)],
        teachers=[Source(NASTY, "teacher", "MIT", "https://example.org")],
        run={"date": "2026-11-25", "machine": "a processor, 2 cores", "seconds": {"fetch": 30.0, "distil": 570.0}},
        remarks=["Few images."],
    )
    path = tmp_path / "index.html"
    drawing = Drawing(picture.read_bytes(), "What it sees")
    write_closing_page(path, results, title="radio-demo", checkpoint=tmp_path / "final", features=drawing, curves=None)
    return path.read_text()


def test_it_has_picture_table_and_commands_and_loads_nothing(page, tmp_path):
    assert 'alt="What it sees" width="30" height="20"' in page
    assert re.findall(r'src="([^,"]*)', page) == ["data:image/png;base64"]
    assert "0.612" in page
    assert "10 minutes on a processor, 2 cores" in page
    assert f"python -m training.evaluate {(tmp_path / 'final').as_posix()} " in page
    assert "Few images." in page
    assert "<script" not in page
    assert "How it learned" not in page


@pytest.mark.parametrize(
    "command", [ADD_WORDS, BUILD, DISTILL, EVALUATE, FINETUNE, PUBLISH], ids=lambda command: command.name
)
def test_each_command_reads_its_words(command, tmp_path):
    words = [shlex.split(text) for text in next_steps(tmp_path / "final").values()]
    modules = [f"{package}.{command.name}" for package in ("training", "training.demo_kit", "model_cards")]
    (arguments,) = [each[3:] for each in words if each[:2] == ["python", "-m"] and each[2] in modules]
    command.read(arguments)


def test_the_license_comes_before_the_publication():
    texts = list(next_steps(Path("runs/demo/final")).values())
    assert texts[-2] == "python -m model_cards.build runs/demo/final --license ID"
    assert texts[-1].startswith("python -m training.publish runs/demo/final ")
