import numpy as np
import pytest
from documentation import ROOT
from PIL import Image


pytestmark = pytest.mark.tour

PHOTOGRAPH = ROOT / "docs" / "photograph.jpg"


def test_the_sheet_has_a_panel_for_each_space(output_of, model, tmp_path):
    printed = output_of("draw_components", model, PHOTOGRAPH, "features.png", "--size", 96)
    assert "the image, backbone, words, dense (4x6 patches)" in printed or "(3x6 patches)" in printed
    sheet, photograph = Image.open(tmp_path / "features.png"), Image.open(PHOTOGRAPH)
    assert sheet.size == (4 * photograph.width, photograph.height)
    panels = np.split(np.asarray(sheet, dtype=float), 4, axis=1)
    assert np.array_equal(panels[0], np.asarray(photograph.convert("RGB"), dtype=float))
    assert all(panel.std() > 20 for panel in panels[1:])
    assert np.abs(panels[1] - panels[2]).mean() > 5


def test_windows_change_what_is_drawn(output_of, model, tmp_path):
    for name, options in (("global", []), ("windows", ["--window", 2])):
        output_of("draw_components", model, PHOTOGRAPH, f"{name}.png", "--size", 96, *options)
    sheets = [np.asarray(Image.open(tmp_path / f"{name}.png"), dtype=float) for name in ("global", "windows")]
    assert np.abs(sheets[0] - sheets[1]).max() > 0
