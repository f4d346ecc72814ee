"""Saved folders name classes that exist, and pipelines only where the stock ones do not fit."""

import importlib

import pytest

from modeling_radio.auto_map_radio import INSTANCE_SEGMENTER, auto_map_entries


@pytest.mark.parametrize(
    ("architectures", "has_text_tower", "pipelines"),
    [
        (None, False, set()),
        (["RadioModel"], False, set()),
        (["RadioForZeroShotImageClassification"], True, {"zero-shot-image-classification"}),
        ([INSTANCE_SEGMENTER], False, {"image-segmentation"}),
    ],
)
@pytest.mark.parametrize("has_names", [True, False])
def test_what_is_named_exists(architectures, has_text_tower, pipelines, has_names):
    entries = auto_map_entries(architectures, has_text_tower=has_text_tower, has_names=has_names)
    pipelines = pipelines if has_names else pipelines | {"image-feature-extraction"}
    assert set(entries.get("custom_pipelines", {})) == pipelines
    references = [*entries["auto_map"].values(), *(p["impl"] for p in entries.get("custom_pipelines", {}).values())]
    for reference in references:
        module, name = reference.split(".")
        assert hasattr(importlib.import_module(f"modeling_radio.{module}"), name)


def test_an_instance_segmenter_opens_as_itself_for_neighboring_tasks():
    options = {"has_text_tower": False, "has_names": True}
    auto_map = auto_map_entries([INSTANCE_SEGMENTER], **options)["auto_map"]
    plain = auto_map_entries(None, **options)["auto_map"]
    assert {key for key in auto_map if auto_map[key] != plain[key]} == {
        "AutoModelForObjectDetection",
        "AutoModelForImageSegmentation",
    }


def test_entries_are_nobody_elses():
    options = {"has_text_tower": False, "has_names": True}
    auto_map_entries([INSTANCE_SEGMENTER], **options)["custom_pipelines"]["image-segmentation"].clear()
    assert auto_map_entries([INSTANCE_SEGMENTER], **options)["custom_pipelines"]["image-segmentation"]
