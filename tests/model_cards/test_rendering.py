import jinja2
import pytest
from huggingface_hub import ModelCardData

from model_cards.rendering import render_card
from modeling_radio import RadioConfig


def test_a_name_without_a_value_is_an_error():
    config = RadioConfig.from_preset("radio-test")
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        render_card("converted.md", config, ModelCardData(), "folder")
