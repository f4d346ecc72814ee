"""Fixtures of all tests of `training`."""

import pytest
import torch
from training_fixtures import _own_accelerator, recipe_file, tiny_world, write_source
from tuning_fixtures import (
    base,
    class_folders,
    coco_content,
    coco_folder,
    depth_folder,
    one_picture,
    outlines_folder,
    own_datasets_cache,
    voc_folder,
)

from conversion.text_tower import canonicalizing
from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel


__all__ = [
    "_own_accelerator",
    "base",
    "class_folders",
    "coco_content",
    "coco_folder",
    "depth_folder",
    "one_picture",
    "outlines_folder",
    "own_datasets_cache",
    "recipe_file",
    "tiny_world",
    "voc_folder",
    "write_source",
]


@pytest.fixture
def zero_shot_folder(tmp_path, build_dual_encoder, word_tokenizer):
    """A folder with a text tower, whose texts live in the space of an adaptor."""
    torch.manual_seed(0)
    adaptor = {"name": "siglip2-g", "summary_dim": 16, "feature_dim": 16, "hidden_size": 16}
    radio = RadioModel(RadioConfig.from_preset("radio-test", preferred_resolution=[32, 32], adaptors=[adaptor])).eval()
    model = RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip", 16))
    folder = tmp_path / "zero-shot"
    model.save_pretrained(folder)
    canonicalizing(word_tokenizer, 16).save_pretrained(folder)
    RadioImageProcessor.from_model_config(radio.config).save_pretrained(folder)
    return folder
