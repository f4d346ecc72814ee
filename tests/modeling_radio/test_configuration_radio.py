"""What the configuration answers and refuses, and what it makes of widths; the presets are in `test_releases_radio`."""

import dataclasses
import inspect
import json

import pytest
from transformers import PreTrainedConfig

from modeling_radio import RadioAdaptorConfig, RadioConfig


HEADS = [
    {"name": "siglip2-g", "hidden_size": 8, "summary_dim": 4},
    {"name": "dino_v3", "hidden_size": 8, "feature_dim": 6, "token_index": 1},
]


def tiny(**fields) -> RadioConfig:
    return RadioConfig.from_preset("radio-test", **fields)


def test_an_adaptor_is_found_by_name():
    adaptor = tiny(adaptors=HEADS).adaptor("dino_v3")
    assert adaptor == RadioAdaptorConfig(name="dino_v3", hidden_size=8, feature_dim=6, token_index=1)


def test_an_unknown_adaptor_is_answered_with_a_suggestion():
    message = r"`text_adaptor` must be one of \['siglip2-g', 'dino_v3'\], got 'dinov3'. Did you mean 'dino_v3'\?"
    with pytest.raises(ValueError, match=message):
        tiny(adaptors=HEADS).adaptor("dinov3", argument="text_adaptor")
    with pytest.raises(ValueError, match=r"`adaptor_names` must be one of \['siglip2-g', 'dino_v3'\], got 'siglip'"):
        tiny(adaptors=HEADS, adaptor_names=["siglip"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlp_version": "v3"}, r"`adaptors.siglip2-g.mlp_version` must be one of \['v1', 'v2'\], got 'v3'"),
        ({"feature_head": "atention"}, "`adaptors.siglip2-g.feature_head` .* Did you mean 'attention'"),
        ({"token_index": 3}, r"`adaptors.siglip2-g.token_index` must lie in \[0, 3\)"),
        ({"token_index": -1}, r"`adaptors.siglip2-g.token_index` must lie in \[0, 3\), the class tokens, got -1"),
        ({"name": "a.b"}, "`name` of an adaptor must be non-empty and without dots, got 'a.b'"),
    ],
)
def test_an_impossible_adaptor_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(adaptors=[{**HEADS[0], **fields}])


@pytest.mark.parametrize(
    ("fields", "width", "ratio"),
    [
        ({}, 128, 4.0),
        ({"mlp_ratio": 2.0}, 64, 2.0),
        ({"mlp_ratio": 2.7}, 86, 86 / 32),
        ({"intermediate_size": 86}, 86, 86 / 32),
        ({"intermediate_size": 100, "mlp_ratio": 3.14}, 100, 3.125),
        ({"hidden_size": 64}, 256, 4.0),
        ({"hidden_size": 64, "intermediate_size": 100}, 100, 100 / 64),
    ],
)
def test_width_of_the_mlp_and_its_ratio_follow_from_each_other(fields, width, ratio, tmp_path):
    config = tiny(**fields)
    assert (config.intermediate_size, config.mlp_ratio) == (width, ratio)
    tiny().save_pretrained(tmp_path)
    opened = RadioConfig.from_pretrained(tmp_path, **fields)
    assert (opened.intermediate_size, opened.mlp_ratio) == (width, ratio)
    assert opened.hidden_size == config.hidden_size


def test_every_field_is_documented_where_it_is_declared():
    for group in RadioConfig.__mro__:
        if group.__module__.startswith("modeling_radio."):
            names = [name for name in inspect.get_annotations(group) if not name.startswith("_") and name != "presets"]
            assert all(f"        {name}: " in group.__doc__ for name in names), group


def test_fields_lie_flat_in_the_file(tmp_path):
    tiny(adaptors=HEADS, detection_num_queries=20).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    names = {field.name for field in dataclasses.fields(RadioConfig)} - {
        field.name for field in dataclasses.fields(PreTrainedConfig)
    }
    assert {name for name in names if not name.startswith("_")} <= set(saved)


def test_width_and_ratio_that_contradict_each_other_are_refused(tmp_path):
    message = "`intermediate_size` must be 64, `hidden_size` 32 times `mlp_ratio` 2.0, got 100. Give one of the two."
    with pytest.raises(ValueError, match=message):
        tiny(intermediate_size=100, mlp_ratio=2.0)
    tiny().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        RadioConfig.from_pretrained(tmp_path, intermediate_size=100, mlp_ratio=2.0)


def test_saved_width_is_kept_where_something_else_is_overridden(tmp_path):
    tiny(intermediate_size=86, detection_num_queries=30).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["intermediate_size"], saved["mlp_ratio"]) == (86, 86 / 32)
    config = RadioConfig.from_pretrained(tmp_path, detection_num_queries=20)
    assert (config.intermediate_size, config.detection_num_queries) == (86, 20)


def test_a_configuration_saved_without_the_width_opens(tmp_path):
    tiny(hidden_size=36, mlp_ratio=2.7).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["intermediate_size"]
    saved["mlp_ratio"] = 97 / 36 + 1e-6
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert RadioConfig.from_pretrained(tmp_path).intermediate_size == 97


def test_only_files_of_nvidia_may_name_other_tokens_than_class_tokens():
    adaptors, source = [{**HEADS[0], "token_index": 10}], {"nvidia_source": {"args": {}}}
    config = tiny(adaptors=adaptors, summary_idxs=[0, 9], **source)
    assert (config.summary_idxs, config.adaptor("siglip2-g").token_index) == ([0, 9], 10)
    assert config.native_differences() == ["a summary of registers, which native cuts off"]
    with pytest.raises(
        ValueError, match=r"`summary_idxs` must lie in \[0, 10\), class tokens and registers, got \[10\]"
    ):
        tiny(summary_idxs=[10], **source)
    with pytest.raises(
        ValueError, match=r"`adaptors.siglip2-g.token_index` must lie in \[0, 11\), up to the first patch"
    ):
        tiny(adaptors=[{**HEADS[0], "token_index": 11}], **source)
    with pytest.raises(ValueError, match=r"`summary_idxs` must lie in \[0, 1\), the class tokens, got \[0, 1\]"):
        tiny(num_cls_tokens=1, summary_idxs=[0, 1])
