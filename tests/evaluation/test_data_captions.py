"""Flickr30k and COCO in folders of their layout: the test split, and five captions of each image."""

import json

import pytest
from PIL import Image

from modeling_radio.evaluation import data_captions
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.settings import EvaluationSettings
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.registry import find_task


@pytest.fixture
def build_captions(tmp_path, monkeypatch):
    def build(name):
        file, images = data_captions.FILES[name]
        entries = []
        for number, split in enumerate(("train", "test", "test")):
            path = tmp_path / name / images / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 30), (100 * number, 0, 0)).save(path)
            sentences = [{"raw": f"a photo {place}", "tokens": []} for place in range(6)]
            entries.append({"filename": path.name, "split": split, "sentences": sentences})
        (tmp_path / name / file).write_text(json.dumps({"images": entries, "dataset": name}))
        monkeypatch.setitem(data_captions.TEST_IMAGES, name, 2)
        return tmp_path / name

    return build


@pytest.mark.parametrize("name", ["flickr30k", "coco"])
def test_presets_run_to_the_end(name, build_captions, reference_folder):
    folder = build_captions(name)
    settings = EvaluationSettings(checkpoint=reference_folder, data=str(folder), preset=name)
    data = open_data(str(folder), settings, size_px=32)
    assert [len(texts) for texts in data.part("captions").test.captions] == [5, 5]
    task, model = find_task("image_text_retrieval"), RadioFeatures.open(reference_folder)
    evaluation = Evaluation(model, data, settings)
    evaluation.expect(task.kind, task.wanted(model))
    measured = task.measure(evaluation)
    assert {each.metric for each in measured} >= {"image to text recall@1", "text to image recall@1"}
    (folder / data_captions.FILES[name][1] / "2.jpg").unlink()
    with pytest.raises(ValueError, match=r"2\.jpg"):
        open_data(str(folder), settings, size_px=32)


def test_a_part_is_refused(build_captions, monkeypatch):
    folder = build_captions("coco")
    monkeypatch.setitem(data_captions.TEST_IMAGES, "coco", 3)
    with pytest.raises(ValueError, match=r"`data` .* got 2"):
        data_captions.open_captions(folder, "coco")
