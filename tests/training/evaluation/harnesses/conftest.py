"""A tiny RADIO folder with a text tower."""

import pytest
import torch

from conversion.text_tower import canonicalizing
from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel


@pytest.fixture
def zero_shot_folder(tmp_path, build_dual_encoder, word_tokenizer):
    torch.manual_seed(0)
    adaptor = {"name": "siglip2-g", "summary_dim": 16, "feature_dim": 16, "hidden_size": 16}
    radio = RadioModel(RadioConfig.from_preset("radio-test", preferred_resolution=[32, 32], adaptors=[adaptor])).eval()
    model = RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip", 16))
    folder = tmp_path / "zero-shot"
    model.save_pretrained(folder)
    canonicalizing(word_tokenizer, 16).save_pretrained(folder)
    RadioImageProcessor.from_model_config(radio.config).save_pretrained(folder)
    return folder
