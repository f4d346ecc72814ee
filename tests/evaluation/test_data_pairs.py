"""SPair-71k and NAVI in folders of their layout: pairs, points, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_radio.evaluation import data_pairs
from modeling_radio.evaluation.data import EvaluationData
from modeling_radio.evaluation.data_pairs import meters_of, open_navi, open_spair, points_of, square_around
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.settings import DataOptions


def test_pairs_of_spair(spair_folder):
    data = open_data(str(spair_folder), DataOptions(layout="spair"), size_px=80)
    assert isinstance(data, EvaluationData)
    part = data.part("pairs")
    assert part.class_names == ("cat", "dog")
    assert (len(part.test), len(part.test.pairs)) == (6, 4)
    pair = min((pair for pair in part.test.pairs if pair.category == 0), key=lambda pair: pair.source_points[0, 0])
    # Keypoints "0" and "2" are seen in both, at whole pixels of the square of 80 px; the longer side has 40 px.
    assert (pair.source_points * 80).tolist() == [[20, 10], [60, 30]]
    assert (pair.target_points * 80).tolist() == [[22, 10], [62, 30]]
    assert pair.unit == pytest.approx(20 / 40)
    image = part.test.images[pair.source]
    assert image.shape == (3, 80, 80)
    assert (image[:, 62:] > 250).all()  # white below the 30 rows of 40 columns
    assert (image[:, :50] < 250).any()


def test_a_choice_of_spair(spair_folder, monkeypatch):
    monkeypatch.setattr(data_pairs, "PAIRS_OF_CLASS", 1)
    first, again = (open_spair(spair_folder, 80).test for _ in range(2))
    assert len(first.pairs) == 2
    assert first.fingerprint == again.fingerprint != open_spair(spair_folder, 160).test.fingerprint


def test_a_part_of_spair_is_refused(spair_folder):
    next(iter((spair_folder / "PairAnnotation" / "test").iterdir())).unlink()
    with pytest.raises(ValueError, match=r"`data` .* got 3"):
        open_spair(spair_folder, 80)


@pytest.mark.parametrize("damage", ["missing image", "no json", "leads out"])
def test_damaged_files_of_spair_are_named(spair_folder, damage):
    file = spair_folder / "PairAnnotation" / "test" / "0-a-b:cat.json"
    if damage == "missing image":
        (spair_folder / "JPEGImages" / "cat" / "a.jpg").unlink()
        file = Path("a.jpg")
    elif damage == "no json":
        file.write_text("{")
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"category": "../cat"}))
    with pytest.raises(ValueError, match=file.name):
        open_spair(spair_folder, 80)


def test_pairs_of_navi(navi_folder):
    data = open_data(str(navi_folder), DataOptions(layout="navi"), size_px=512)
    test = data.part("pairs").test
    assert (len(test), len(test.pairs)) == (6, 2)  # every fourth of six pairs
    pair = test.pairs[0]
    assert pair.source // 3 == pair.target // 3
    image, points = test.images[pair.source], test.points[pair.source]
    assert image.shape == points.shape == (3, 512, 512)
    # The object fills the cut, half a meter away.
    assert points[2].unique().tolist() == pytest.approx([0.5], abs=2e-4)
    # 64 of 128 pixels in the middle, with a focal length of 128: a quarter of the distance to each side.
    assert points[0].amax().item() == pytest.approx(0.125, abs=2e-3)
    assert points[1].amin().item() == pytest.approx(-0.125, abs=2e-3)
    angle = pair.move[:3, :3].trace().sub(1).div(2).acos().rad2deg()
    assert angle == pytest.approx(20 * abs(pair.target - pair.source), abs=0.1)


def test_a_part_of_navi_is_refused(navi_folder):
    (navi_folder / "cup" / "wild_set" / "depth" / "001.png").unlink()
    with pytest.raises(ValueError, match=r"`data` .* got 5"):
        open_navi(navi_folder)
    shutil.rmtree(navi_folder / "cup")
    with pytest.raises(ValueError, match="got 3"):
        open_navi(navi_folder)


def test_depth_points_and_squares():
    stored = np.array([[0, 65535], [6554, 1]], np.uint16)
    expected = [[0, 0.01], [655.35 / 6554, 655.35]]
    assert meters_of(stored).tolist() == [pytest.approx(row, rel=1e-5) for row in expected]
    points = points_of(torch.full((2, 4), 3.0), 6.0)
    assert points[:, 0, 3].tolist() == pytest.approx([0.75, -0.25, 3])
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[4:9, 2:16] = True
    assert square_around(mask) == (slice(0, 13), slice(2, 15))  # nine rows to add, four of them above
    mask[4:9, 2:16], mask[0:3, 2:16] = False, True
    assert square_around(mask) == (slice(0, 13), slice(2, 15))  # the upper edge is the image's
