import json
import re
import shutil
from dataclasses import replace

import pytest

from modeling_radio.model_cards.build import build_card
from modeling_radio.model_cards.parity import FILE, Agreement, Cost, Parity
from modeling_radio.model_cards.rendering import render_part


PARITY = Parity(
    source="nvidia/C-RADIOv4-H",
    revision="0123abc",
    date="2026-11-25",
    machine="a CPU, 2 cores",
    device="cpu",
    dtype="float32",
    versions={"python": "3.11", "torch": "2.13.0", "transformers": "5.24.0"},
    images=["photograph.jpg", "uniform noise"],
    tolerance=1e-4,
    agreements=[
        Agreement("512x512", None, "summary", 1.25e-6, 3.5e-7, 0.99999999),
        Agreement("384x640", None, "summary", 2.5e-6, 1.5e-7, 0.9999998),
        Agreement("512x512", 8, "sam3 features", 4e-6, 5.5e-7, 1.0),
    ],
    costs=[Cost("512x512", None, 1.25, 1.0, 4096.4, 3000.2), Cost("512x512", 8, 0.5, 0.25, None, None)],
    remarks=["Not compared: adaptors of siglip2-g."],
)


def test_each_row_is_the_worst_of_all_sizes():
    assert PARITY.rows() == [
        ["summary", "global", "2.5e-06", "3.5e-07", "0.9999998"],
        ["sam3 features", "windows of 8", "4.0e-06", "5.5e-07", "1.0000000"],
    ]
    assert PARITY.worst == PARITY.agreements[2]
    equal = replace(PARITY, agreements=[Agreement("512x512", None, "summary", 0.0, 0.0, 1.0)])
    assert equal.rows() == [["summary", "global", "0", "0", "1.0000000"]]


def test_every_figure_of_the_tables_is_in_the_file():
    text = render_part("parity.md", parity=PARITY)
    assert "| sam3 features | windows of 8 | 4.0e-06 | 5.5e-07 | 1.0000000 |" in text
    assert "| 512x512 px | global | 1250.0 | 1000.0 | 4096 | 3000 |" in text
    assert "| 512x512 px | windows of 8 | 500.0 | 250.0 |  |  |" in text
    assert "largest relative difference is 5.5e-07" in text
    assert text.count("\n#") == 0  # one heading, at its beginning
    assert text.startswith("## Parity")
    assert "the peak of the process." in text
    assert "that is allocated on the GPU." in render_part("parity.md", parity=replace(PARITY, device="cuda"))


def test_a_card_shows_it_where_it_lies_in_the_folder(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    assert "Parity" not in build_card(folder).text
    PARITY.save(folder / FILE)
    assert Parity.load(folder / FILE) == PARITY
    text = build_card(folder).text
    assert re.findall(r"^## .*", text, re.MULTILINE).count("## Parity with NVIDIA's own code") == 1
    assert "Not compared: adaptors of siglip2-g." in text
    (folder / FILE).write_text(json.dumps({"source": "x"}))
    with pytest.raises(ValueError, match=r"parity\.json"):
        build_card(folder)
