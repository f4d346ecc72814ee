"""Prompt templates and text towers of the zero-shot tasks."""

import pytest
from transformers import SiglipTextConfig

from modeling_radio import RadioConfig
from modeling_radio.zero_shot_radio import (
    OPENAI_TEMPLATES,
    PLAIN_TEMPLATES,
    SIMPLE_TEMPLATES,
    TEXT_TOWERS,
    MissingTextTowerError,
    fill_templates,
    text_tower_config,
    text_tower_kind,
    tower_attention,
)


def test_openai_templates_are_80_and_hold_the_simple_ones():
    assert len(OPENAI_TEMPLATES) == len(set(OPENAI_TEMPLATES)) == 80
    assert set(SIMPLE_TEMPLATES) < set(OPENAI_TEMPLATES)
    assert all(template.count("{}") == 1 for template in (*OPENAI_TEMPLATES, *PLAIN_TEMPLATES))
    # One of each family of the published list.
    assert {
        "a bad photo of a {}.",
        "a photo of the hard to see {}.",
        "graffiti of the {}.",
        "the embroidered {}.",
        "itap of my {}.",
        "a photo of many {}.",
        "the {} in a video game.",
        "a jpeg corrupted photo of the {}.",
    } <= set(OPENAI_TEMPLATES)


def test_templates_are_filled_in_order():
    assert fill_templates("cat", PLAIN_TEMPLATES) == ["cat"]
    assert fill_templates("cat", ["a {}.", "the {}."]) == ["a cat.", "the cat."]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], "`templates` must have at least one"),
        (["a cat"], "placeholder {} exactly once, got 'a cat'"),
        (["{} {}"], "exactly once"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(templates, message):
    with pytest.raises(ValueError, match=message):
        fill_templates("cat", templates)


def test_tower_is_read_from_the_configuration():
    tower = SiglipTextConfig(hidden_size=32, projection_size=24)
    config = RadioConfig.from_preset("radio-test", text_tower=tower.to_dict())
    assert text_tower_config(config).projection_size == 24
    assert text_tower_kind(config).use_sigmoid


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"model_type": "bert"}, "must be one of .*'siglip_text_model'.*got 'bert'"),
        ({"model_type": "siglip_text"}, "Did you mean 'siglip_text_model'"),
        ({}, "got None"),
        ({"model_type": "sentence_encoders"}, "Did you mean 'sentence_encoder'"),
    ],
)
def test_unknown_towers_are_refused(tower, message):
    with pytest.raises(ValueError, match=message):
        text_tower_kind(RadioConfig.from_preset("radio-test", text_tower=tower))


def test_a_missing_tower_is_told_from_a_wrong_one():
    with pytest.raises(MissingTextTowerError, match=r"`text_tower` of .* must be that of a text model, got None"):
        text_tower_kind(RadioConfig.from_preset("radio-test"))


@pytest.mark.parametrize(
    ("tower", "implementation", "expected"),
    [
        ("siglip_text_model", "eager", "eager"),
        ("siglip_text_model", "flash_attention_2", "flash_attention_2"),
        ("clip_text_model", "flex_attention", "flex_attention"),
        ("siglip2_text_model", "sdpa", "sdpa"),
        ("siglip2_text_model", "flash_attention_2", "sdpa"),
        ("siglip2_text_model", "flex_attention", "sdpa"),
    ],
)
def test_tower_attends_as_the_backbone_does_where_it_can(tower, implementation, expected):
    assert tower_attention(TEXT_TOWERS[tower], implementation) == expected
