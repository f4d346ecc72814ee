from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from training.pictures.differences import Line, draw_differences


def test_a_panel_has_dots_intervals_and_zero(tmp_path: Path, drawn: list[Figure]) -> None:
    lines = [Line("b - a", [0.1, 0.3], (0.2, 0.05, 0.35)), Line("c - a", [0.4], None)]
    draw_differences({"one": lines, "two": lines}, tmp_path / "plot.png")
    one, two = drawn[0].axes
    assert [one.get_title(), two.get_title()] == ["one", "two"]
    assert [text.get_text() for text in one.get_yticklabels()] == ["b - a", "c - a"]
    dots = [np.asarray(each.get_offsets())[:, 0].tolist() for each in one.collections if len(each.get_offsets())]
    assert [0.1, 0.3] in dots
    assert [0.4] in dots
    (bar,) = one.containers
    (segment,) = bar[2][0].get_segments()
    assert segment[:, 0].tolist() == pytest.approx([0.05, 0.35])
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 100
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
