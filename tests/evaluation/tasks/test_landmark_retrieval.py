"""Queries of buildings: average precision of known answers, and the preset to the end."""

import json
import math

import pytest
from PIL import Image

from modeling_radio.evaluation import data_landmarks
from modeling_radio.evaluation.data_landmarks import open_landmarks
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.settings import EvaluationSettings, TaskSettings
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.landmark_retrieval import average_precision, measure_landmark_retrieval


def test_known_answers():
    assert average_precision([3, 1, 2, 0], [3, 1], []) == 1
    assert average_precision([9, 3, 1, 2, 0], [3, 1], [9]) == 1
    assert average_precision([0, 1], [1], []) == pytest.approx((0 + 1 / 2) / 2)
    assert math.isnan(average_precision([0, 1], [], [1]))


@pytest.fixture
def oxford(tmp_path, monkeypatch):
    """ROxford with two queries and four images, the colors of which decide what is found."""
    folder = tmp_path / "roxford5k"
    (folder / "jpg").mkdir(parents=True)
    colors = {
        "a": (250, 0, 0),
        "b": (240, 10, 0),
        "c": (0, 250, 0),
        "d": (0, 240, 20),
        "q": (250, 0, 0),
        "r": (0, 250, 0),
    }
    for name, color in colors.items():
        image = Image.new("RGB", (30, 20), (90, 90, 90))
        image.paste(color, (0, 0, 16, 16) if name in "qr" else (0, 0, 30, 20))
        image.save(folder / "jpg" / f"{name}.jpg")
    gnd = [
        {"bbx": [0.0, 0.0, 16.0, 16.0], "easy": [0], "hard": [1], "junk": []},
        {"bbx": [0.0, 0.0, 16.0, 16.0], "easy": [0], "hard": [3], "junk": [2]},
    ]
    truth = {"imlist": ["a", "b", "c", "d"], "qimlist": ["q", "r"], "gnd": gnd}
    (folder / "gnd_roxford5k.json").write_text(json.dumps(truth))
    monkeypatch.setattr(data_landmarks, "QUERIES", 2)
    monkeypatch.setitem(data_landmarks.DATABASE, "roxford", 4)
    return folder


@pytest.mark.parametrize("name", ["roxford", "rparis"])
def test_presets_run_to_the_end(name, oxford, reference, monkeypatch):
    if name == "rparis":
        monkeypatch.setitem(data_landmarks.DATABASE, name, 4)
        (oxford / "gnd_roxford5k.json").rename(oxford / "gnd_rparis6k.json")
    settings = EvaluationSettings(checkpoint=oxford, data=str(oxford), preset=name)
    data = open_data(str(oxford), settings, size_px=32)
    measured = measure_landmark_retrieval(Evaluation(RadioFeatures(reference, size_px=32), data, settings))
    assert [each.metric for each in measured] == ["mAP, medium", "mAP, hard"]
    assert all(0 <= each.value <= 1 for each in measured)


def test_known_queries_find_their_images(oxford):
    evaluation = Evaluation(RawPixels(8, 16), open_landmarks(oxford, "roxford"), TaskSettings())
    measured = {each.metric: each.value for each in measure_landmark_retrieval(evaluation)}
    # The second query finds d, then b or a: its easy image a is third or second of the three that count.
    assert measured["mAP, hard"] == pytest.approx(1)
    assert 0.5 < measured["mAP, medium"] < 1


def test_queries_of_one_building_are_drawn_together(oxford):
    evaluation = Evaluation(RawPixels(8, 16), open_landmarks(oxford, "roxford"), TaskSettings())
    assert evaluation.examples("landmarks").groups.tolist() == [0, 0]  # both should find a
    assert all(each.low is None for each in measure_landmark_retrieval(evaluation))
    file = oxford / "gnd_roxford5k.json"
    truth = json.loads(file.read_text())
    truth["gnd"][0]["easy"] = []
    file.write_text(json.dumps(truth))
    evaluation = Evaluation(RawPixels(8, 16), open_landmarks(oxford, "roxford"), TaskSettings())
    assert evaluation.examples("landmarks").groups.tolist() == [0, 1]
    assert all(each.low is not None for each in measure_landmark_retrieval(evaluation))


@pytest.mark.parametrize("damage", ["an image", "the list", "an index"])
def test_a_part_of_roxford_is_refused(oxford, damage):
    file = oxford / "gnd_roxford5k.json"
    truth = json.loads(file.read_text())
    if damage == "an image":
        (oxford / "jpg" / "d.jpg").unlink()
    elif damage == "the list":
        file.write_text(json.dumps(truth | {"imlist": ["a"]}))
    else:
        truth["gnd"][0]["easy"] = [4]
        file.write_text(json.dumps(truth))
    message = {"an image": r"d\.jpg", "the list": "4 images of the database of ROxford, got 1", "an index": file.name}
    with pytest.raises(ValueError, match=message[damage]):
        open_landmarks(oxford, "roxford")
