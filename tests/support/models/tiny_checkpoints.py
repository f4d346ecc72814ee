"""Tiny checkpoints with random weights, opened once, and photographs: what tests of the app and its answers share."""

from pathlib import Path

import pytest
import tiny_texts
import torch
from documentation import ROOT
from PIL import Image
from task_models import tiny_config
from tiny_folders import save_with_processor

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel, RadioPreTrainedModel
from modeling_radio.conversion.text_tower import canonicalizing
from modeling_radio.core.opening import Opened, open_model


WIDTH = 16
ADAPTORS = [
    {"name": "siglip2-g", "summary_dim": WIDTH, "feature_dim": WIDTH, "hidden_size": 16},
    {"name": "dino_v2", "token_index": 1, "summary_dim": 8, "feature_dim": 24, "hidden_size": 16},
]
CLASSES = ["cat", "dog", "grass"]
"""Words that the tests' tokenizer knows."""


@pytest.fixture(scope="session")
def photograph() -> str:
    return str(ROOT / "docs" / "photograph.jpg")


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """The folder of a model with a text tower and two teachers' spaces; four of its six blocks may have windows."""
    torch.manual_seed(0)
    config = RadioConfig.from_preset(
        "radio-test", num_hidden_layers=6, preferred_resolution=[128, 128], adaptors=ADAPTORS
    )
    radio = RadioModel(config).eval()
    model = RadioForZeroShotImageClassification.from_parts(radio, tiny_texts.build_dual_encoder("siglip", WIDTH))
    folder = save_with_processor(model, tmp_path_factory.mktemp("app") / "texts")
    canonicalizing(tiny_texts.build_word_tokenizer(), 16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def opened(texts) -> Opened:
    return open_model(str(texts), device="cpu")


@pytest.fixture
def save_tuned(tmp_path):
    """Return a function that saves a random model of a task, and returns its folder."""

    def build(model_class: type[RadioPreTrainedModel], **fields) -> Path:
        torch.manual_seed(0)
        names = dict(enumerate(CLASSES))
        config = tiny_config(id2label=names, preferred_resolution=[64, 96], **fields)
        return save_with_processor(model_class(config).eval(), tmp_path / model_class.__name__)

    return build


@pytest.fixture
def picture(tmp_path):
    """Return a function that saves an image, and returns its path."""

    def write(image: Image.Image, name: str = "picture.png", **options) -> str:
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return write
