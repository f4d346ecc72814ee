import re
import shlex

import pytest
from PIL import Image

from modeling_radio.demo.add_words import COMMAND as ADD_WORDS
from modeling_radio.demo.before_after import FILE, PHONE_FILE
from modeling_radio.demo.closing_page import (
    BEFORE_AFTER,
    next_steps,
    write_closing_page,
)
from modeling_radio.evaluation.evaluate import COMMAND as EVALUATE
from modeling_radio.metrics.results import Measurement, Results, Source
from modeling_radio.model_cards.card import COMMAND as CARD
from modeling_radio.publishing.publish import COMMAND as PUBLISH
from modeling_radio.training.distill import COMMAND as DISTILL
from modeling_radio.tuning.finetune import COMMAND as FINETUNE


def test_the_page_has_figure_table_and_commands_and_loads_nothing(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "features.png")
    results = Results(
        [Measurement("student", "knn", "accuracy", "objects", 0.612, seed=0)],
        teachers=[Source("<script>alert(1)</script>", "teacher", "MIT", "https://example.org")],
        run={"date": "2026-11-25", "machine": "a processor, 2 cores", "seconds": {"fetch": 30.0, "distil": 570.0}},
        remarks=["Few images."],
    )
    path = tmp_path / "index.html"
    write_closing_page(path, results, title="radio-demo", checkpoint=tmp_path / "final", run=tmp_path)
    page = path.read_text()
    assert re.findall(r'src="([^,"]*)', page) == ["data:image/png;base64"]
    command = f"radio evaluate {(tmp_path / 'final').as_posix()} "
    for part in ('width="30" height="20"', "0.612", "10 minutes on a processor, 2 cores", command, "Few images."):
        assert part in page
    assert "<script" not in page
    assert "How it learned" not in page
    (tmp_path / FILE).parent.mkdir()
    for file in (FILE, PHONE_FILE):
        Image.new("RGB", (30, 20), "blue").save(tmp_path / file)
    write_closing_page(path, results, title="radio-demo", checkpoint=tmp_path / "final", run=tmp_path)
    page = path.read_text()
    assert page.index(BEFORE_AFTER[0]) < page.index("0.612")
    sources = ["data:image/webp;base64", "data:image/webp;base64", "data:image/png;base64"]
    assert re.findall(r'src(?:set)?="([^,"]*)', page) == sources


@pytest.mark.parametrize(
    "command", [ADD_WORDS, CARD, DISTILL, EVALUATE, FINETUNE, PUBLISH], ids=lambda command: command.name
)
def test_each_command_reads_its_words(command, tmp_path):
    words = [shlex.split(text) for text in next_steps(tmp_path / "final").values()]
    (arguments,) = [rest for program, name, *rest in words if f"{program} {name}" == command.name]
    command.read(arguments)
