"""The Auto classes of transformers in a process that imports the package: alone, and inside composite models."""

import json

import pytest
import torch
import transformers
from comparisons import assert_same_weights
from task_models import images, tiny_config
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForObjectDetection,
    AutoVideoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import modeling_radio
from modeling_radio import (
    RadioBackbone,
    RadioConfig,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForUniversalSegmentation,
    RadioImageProcessor,
    RadioModel,
    RadioVideoProcessor,
)
from modeling_radio.tasks_radio import AUTO_MAP


pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}

NO_MODELS = {"AutoConfig", "AutoVideoProcessor", "AutoProcessor", "AutoModelForZeroShotImageClassification"}
"""Auto classes that build no model, or no model without a text tower."""


@pytest.mark.parametrize("name", sorted(AUTO_MAP.keys() - NO_MODELS))
def test_each_auto_class_builds_ours(name):
    model = getattr(transformers, name).from_config(tiny_config())
    assert type(model) is getattr(modeling_radio, AUTO_MAP[name].rpartition(".")[2])


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}])
def test_saved_folders_open_as_ours(tmp_path, trust):
    model = RadioModel(tiny_config())
    model.save_pretrained(tmp_path)
    RadioImageProcessor.from_model_config(model.config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path, **trust)) is RadioConfig
    assert type(AutoImageProcessor.from_pretrained(tmp_path, **trust)) is RadioImageProcessor
    assert type(AutoVideoProcessor.from_pretrained(tmp_path, **trust)) is RadioVideoProcessor
    opened = AutoModel.from_pretrained(tmp_path, **trust)
    assert type(opened) is RadioModel
    assert_same_weights(opened, model)
    assert type(AutoModel.from_config(AutoConfig.from_pretrained(tmp_path, **trust), **trust)) is RadioModel


def test_folders_of_the_instance_segmenter_name_it(tmp_path):
    """Where an Auto class has two of our models to choose from, the folder decides."""
    RadioForInstanceSegmentation(tiny_config()).save_pretrained(tmp_path / "instances")
    RadioForUniversalSegmentation(tiny_config()).save_pretrained(tmp_path / "universal")
    RadioForObjectDetection(tiny_config()).save_pretrained(tmp_path / "boxes")
    RadioModel(tiny_config()).save_pretrained(tmp_path / "backbone")
    for auto_class, plain in (
        (AutoModelForObjectDetection, RadioForObjectDetection),
        (AutoModelForImageSegmentation, RadioForSemanticSegmentation),
    ):
        assert type(auto_class.from_pretrained(tmp_path / "instances")) is RadioForInstanceSegmentation
        assert type(auto_class.from_pretrained(tmp_path / "universal")) is RadioForUniversalSegmentation
        assert type(auto_class.from_pretrained(tmp_path / "backbone")) is plain
    assert type(AutoModelForObjectDetection.from_pretrained(tmp_path / "boxes")) is RadioForObjectDetection


@torch.no_grad()
@pytest.mark.parametrize("is_opened", [False, True])
def test_upernet_on_ours_builds_saves_and_reopens(tmp_path, is_opened):
    backbone = tiny_config(out_indices=[1, 2, 3, 4])
    if is_opened:  # with the entries of a folder
        backbone.save_pretrained(tmp_path / "backbone")
        backbone = AutoConfig.from_pretrained(tmp_path / "backbone", trust_remote_code=True)
    config = UperNetConfig(backbone_config=backbone, hidden_size=32, auxiliary_in_channels=32)
    model = UperNetForSemanticSegmentation(config).eval()
    assert type(model.backbone) is RadioBackbone
    model.save_pretrained(tmp_path / "upernet")
    nested = json.loads((tmp_path / "upernet" / "config.json").read_text())["backbone_config"]
    assert not {"auto_map", "custom_pipelines"} & nested.keys()
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "upernet").eval()
    assert type(again.backbone) is RadioBackbone
    batch = images(2, (64, 96))
    torch.testing.assert_close(again(batch).logits, model(batch).logits, rtol=0, atol=1e-6)


def build_llava():
    config = LlavaConfig(
        vision_config=tiny_config(),
        text_config=LlamaConfig(**TEXT),
        image_token_index=5,
        vision_feature_select_strategy="full",
    )
    return LlavaForConditionalGeneration(config).eval()


@torch.no_grad()
def test_llava_on_ours_builds_saves_and_reopens(tmp_path):
    model = build_llava()
    assert type(model.model.vision_tower) is RadioModel
    model.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert type(again.model.vision_tower) is RadioModel
    assert_same_weights(again, model)
    batch = images(1, (64, 96))
    features, expected = (each.get_image_features(pixel_values=batch).pooler_output[0] for each in (again, model))
    assert features.shape == (10 + 24, 32)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
