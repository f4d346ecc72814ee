"""Saved folders name classes that exist, and pipelines only where the stock ones do not fit."""

import importlib
import json

import pytest

import modeling_radio
from modeling_radio import RadioConfig
from modeling_radio.hub_radio import INSTANCE_SEGMENTER, INSTANCE_SEGMENTERS, auto_map_entries, write_modules


TASKS = {"image-feature-extraction", "image-classification", "image-segmentation", "depth-estimation"} | {
    "object-detection",
    "video-classification",
}


@pytest.mark.parametrize(
    ("architectures", "has_text_tower", "further"),
    [
        (None, False, set()),
        (["RadioModel"], False, set()),
        (
            ["RadioForZeroShotImageClassification"],
            True,
            {"zero-shot-image-classification", "zero-shot-object-detection"},
        ),
        ([INSTANCE_SEGMENTER], False, set()),
    ],
)
def test_what_is_named_exists(architectures, has_text_tower, further):
    entries = auto_map_entries(architectures, has_text_tower=has_text_tower)
    assert set(entries["custom_pipelines"]) == TASKS | further
    references = [*entries["auto_map"].values(), *(p["impl"] for p in entries["custom_pipelines"].values())]
    for reference in references:
        module, name = reference.split(".")
        assert hasattr(importlib.import_module(f"modeling_radio.{module}"), name)


@pytest.mark.parametrize("has_text_tower", [False, True])
def test_sentence_transformers_is_told_what_to_call(tmp_path, has_text_tower):
    write_modules(tmp_path, has_text_tower=has_text_tower)
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    methods = [entry["method"] for entry in settings["modality_config"].values()]
    assert methods == ["get_image_features", "get_text_features"][: 1 + has_text_tower]
    assert all(hasattr(modeling_radio.RadioModel, name) for name in methods)


def test_an_instance_segmenter_opens_as_itself_for_neighboring_tasks():
    plain = auto_map_entries(None, has_text_tower=False)["auto_map"]
    first, second = (auto_map_entries([name], has_text_tower=False) for name in INSTANCE_SEGMENTERS)
    assert first == second
    auto_map = first["auto_map"]
    assert {key for key in auto_map if auto_map[key] != plain[key]} == {
        "AutoModelForObjectDetection",
        "AutoModelForImageSegmentation",
    }


@pytest.mark.parametrize(
    ("name", "task"), [("RadioModel", "image-feature-extraction"), ("RadioForDepthEstimation", "depth-estimation")]
)
def test_a_pipeline_without_a_task_is_the_folders_own(name, task, tmp_path):
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=1)
    getattr(modeling_radio, name)(config).save_pretrained(tmp_path)
    assert list(RadioConfig.from_pretrained(tmp_path, _from_pipeline=None).custom_pipelines) == [task]
    assert len(RadioConfig.from_pretrained(tmp_path, _from_pipeline="depth-estimation").custom_pipelines) > 1
    assert len(RadioConfig.from_pretrained(tmp_path).custom_pipelines) > 1
