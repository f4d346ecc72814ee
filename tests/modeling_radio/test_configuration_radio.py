"""What the configuration answers and refuses, and what it makes of widths; the presets are in `test_releases_radio`."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from tiny_radio1d import FIELDS
from transformers import PreTrainedConfig, ViTConfig
from transformers.models.radio.configuration_radio import RadioConfig as NativeRadioConfig

from modeling_radio import RadioAdaptorConfig, RadioConfig, RadioModel
from modeling_radio.checks_radio import LARGEST, MOST_BLOCKS, Resolution
from modeling_radio.configuration_radio import NATIVE_FIELDS
from modeling_radio.native import native_differences


HEADS = [
    {"name": "siglip2-g", "hidden_size": 8, "summary_dim": 4},
    {"name": "dino_v3", "hidden_size": 8, "feature_dim": 6, "token_index": 1},
]


OPEN_TWICE = """
import sys
from transformers import AutoConfig, AutoModel
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
config.save_pretrained(sys.argv[2])
config = AutoConfig.from_pretrained(sys.argv[2], trust_remote_code=True)
print(AutoModel.from_config(config, trust_remote_code=True).radio_model.model.blocks[3].mlp.fc1.weight.shape)
"""


def tiny(**fields) -> RadioConfig:
    return RadioConfig.from_preset("radio-test", **fields)


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


def test_every_field_of_ours_is_documented():
    names = {each.name for each in dataclasses.fields(RadioConfig) if not each.name.startswith("_")}
    names -= {each.name for each in dataclasses.fields(PreTrainedConfig)}
    assert [name for name in names if f"        {name}: " not in RadioConfig.__doc__] == []


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
    assert native_differences(config) == ["a summary of registers, which native cuts off"]
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vitdet_window_size": 0}, "`vitdet_window_size` must be .*, got 0"),
        ({"adaptor_names": ["nope"]}, r"`adaptor_names` must be one of \['siglip2-g', 'dino_v3'\], got 'nope'"),
        ({"adaptor_names": "siglip2-g"}, "`adaptor_names` must be a list.*, got 'siglip2-g'"),
        ({"patch_size": 24}, r"`max_img_size` must be a multiple of `patch_size` \(24\), got 256"),
        ({"num_attention_heads": 5}, r"`hidden_size` must be a multiple of `num_attention_heads` \(5\), got 32"),
        ({"return_dict": "no"}, "`return_dict` must be True or False or None, got 'no'"),
        ({"out_indices": [7]}, r"out_indices must be valid indices .* got \[7\]"),
    ],
)
def test_overrides_at_load_are_checked_like_all_else(fields, message, tmp_path):
    tiny(adaptors=HEADS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        RadioConfig.from_pretrained(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        RadioModel.from_pretrained(tmp_path, **fields)


def test_a_field_that_is_set_later_is_checked_when_a_model_is_built():
    config = tiny()
    config.num_attention_heads = 5
    with pytest.raises(ValueError, match=r"`hidden_size` must be a multiple of `num_attention_heads` \(5\), got 32"):
        RadioModel(config)
    config = tiny()
    config.summary_idxs.append("3")  # in place: nobody sees it
    with pytest.raises(ValueError, match="`summary_idxs` must be a list"):
        RadioModel(config)


@pytest.mark.parametrize("order", [1, -1])
def test_what_was_not_chosen_follows_an_override_at_load(order, tmp_path):
    tiny(adaptors=HEADS).save_pretrained(tmp_path)
    fields = {"use_feature_pyramid": True, "num_hidden_layers": 2, "adaptors": HEADS[1:]}
    config = RadioConfig.from_pretrained(tmp_path, **dict(list(fields.items())[::order]))
    assert config.stage_names == config.out_features == ["p2", "p3", "p4", "p5"]
    assert config.adaptor_names == ["dino_v3"]
    chosen = {"out_features": ["p3"], "adaptor_names": [], **fields}
    config = RadioConfig.from_pretrained(tmp_path, **dict(list(chosen.items())[::order]))
    assert (config.out_features, config.out_indices, config.adaptor_names) == (["p3"], [1], [])
    assert RadioConfig.from_pretrained(tmp_path, num_hidden_layers=2).out_features == ["stage2"]


def test_maps_that_were_not_chosen_follow_the_depth():
    config = tiny()
    config.num_hidden_layers = 2
    assert (config.out_features, config.out_indices) == (["stage2"], [2])
    config.check()


def test_a_width_that_is_set_later_must_fit_the_others():
    config = tiny()
    config.hidden_size = 64
    with pytest.raises(ValueError, match="`intermediate_size`"):
        RadioModel(config)
    config.intermediate_size = 256
    config.check()


def test_fields_of_transformers_are_refused_where_a_file_is_opened_with_others():
    with pytest.raises(ValueError, match="`chunk_size_feed_forward`"):
        RadioConfig.from_dict(tiny().to_dict(), chunk_size_feed_forward=-1)


def test_architectures_that_are_taken_away_are_none_at_all():
    config = tiny()
    config.architectures = None
    config.check()
    assert RadioConfig.from_dict(json.loads(config.to_json_string())).to_json_string() == config.to_json_string()


def test_maps_that_were_chosen_stay_chosen():
    config = tiny(out_indices=[1, 2])
    config.num_hidden_layers = 2
    assert config.out_features == ["stage1", "stage2"]
    config.num_hidden_layers = 1
    with pytest.raises(ValueError, match=r"out_features must be a subset of stage_names: \['stem', 'stage1'\]"):
        config.check()


FITTED = {"class_weights": [1.0, 2.0], "temperature": 2.0, "score_thresholds": [0.25, 0.75]}


def fitted(config: RadioConfig) -> dict:
    return {name: getattr(config, name) for name in FITTED}


@pytest.mark.parametrize(("name", "value"), [("id2label", None), ("label2id", None), ("output_attentions", 1)])
def test_fields_of_transformers_are_refused_where_they_are_set_one_by_one(name, value):
    config = tiny(num_labels=3)
    setattr(config, name, value)
    with pytest.raises(ValueError, match=f"`{name}`"):
        config.check()


def test_what_was_fitted_to_other_classes_is_forgotten(tmp_path):
    tiny(id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}, **FITTED).save_pretrained(tmp_path)
    names = {0: "a", 1: "b", 2: "c"}
    for changed in ({"num_labels": 3}, {"id2label": names}, {"num_labels": 3, "id2label": names}):
        config = RadioConfig.from_pretrained(tmp_path, **changed)
        assert fitted(config) == {"class_weights": None, "temperature": 1.0, "score_thresholds": None}
        assert config.id2label == changed.get("id2label", {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"})
        assert config.label2id == {name: index for index, name in config.id2label.items()}
    for kept in ({}, {"num_labels": 2}, {"id2label": {0: "lion", 1: "tiger"}}):
        config = RadioConfig.from_pretrained(tmp_path, **kept)
        assert fitted(config) == FITTED
        assert config.id2label == kept.get("id2label", {0: "cat", 1: "dog"})


def test_what_is_given_for_other_classes_is_kept(tmp_path):
    tiny(**FITTED).save_pretrained(tmp_path)
    given = {"class_weights": [3.0, 2.0, 1.0], "temperature": 4.0, "score_thresholds": [0.1, 0.2, 0.3]}
    assert fitted(RadioConfig.from_pretrained(tmp_path, num_labels=3, **given)) == given
    config = RadioConfig.from_pretrained(tmp_path)
    config.class_weights = given["class_weights"]
    config.num_labels = 3
    assert fitted(config) == {"class_weights": given["class_weights"], "temperature": 1.0, "score_thresholds": None}


def test_presets_take_what_a_configuration_takes():
    config = tiny(out_indices=[1, 2], num_labels=5, attn_implementation="eager")
    assert (config.out_features, config.num_labels, config._attn_implementation) == (["stage1", "stage2"], 5, "eager")
    with pytest.raises(ValueError, match=r"Unknown configuration field 'out_indexes'. Did you mean 'out_indices'\?"):
        tiny(out_indexes=[1])


def test_the_type_of_the_file_is_kept_for_auto(tmp_path):
    tiny(dtype="bfloat16").save_pretrained(tmp_path)
    assert RadioConfig.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_a_configuration_of_native_transformers_builds_our_model():
    native = NativeRadioConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_img_size=64, attn_implementation="eager"
    )
    model = RadioModel(native)
    assert isinstance(model.config, RadioConfig)
    assert (model.config.hidden_size, model.config._attn_implementation) == (32, "eager")
    assert model(torch.rand(1, 3, 32, 32)).features.shape == (1, 4, 32)
    assert not set(NATIVE_FIELDS) & set(model.config.to_dict())
    with pytest.raises(ValueError, match="`config` must be a RadioConfig, got a ViTConfig"):
        RadioModel(ViTConfig())


def test_a_configuration_saved_alone_opens(tmp_path, run_elsewhere):
    tiny().save_pretrained(tmp_path / "first")
    assert "torch.Size([128, 32])" in run_elsewhere(OPEN_TWICE, tmp_path, tmp_path / "first", tmp_path / "second")


def test_no_architectures_are_an_empty_list():
    config = RadioConfig.from_dict(tiny().to_dict(), architectures=None)
    assert config.architectures == []


def test_a_slip_in_a_field_is_told():
    with pytest.warns(UserWarning, match="no field 'hiden_size', which changes nothing. Did you mean 'hidden_size'?"):
        RadioConfig(hiden_size=64)


def test_what_only_others_know_is_kept_without_a_word(recwarn):
    config = RadioConfig(my_note="x", torch_dtype="float32", transformers_version="5.24.0")
    assert config.my_note == "x"
    assert [str(each.message) for each in recwarn if "no field" in str(each.message)] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("architectures", True), ("auto_map", None), ("auto_map", {"AutoConfig": 5}), ("custom_pipelines", None)],
        *[("transformers_weights", []), ("quantization_config", [1]), ("attn_implementation", "org/kernel")],
        *[("base_model_tp_plan", {}), ("sub_configs", {}), ("to_dict", 5)],
    ],
)
def test_a_file_that_transformers_would_stumble_over_is_refused(name, value, tmp_path):
    RadioConfig.from_preset("radio-test").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=f"`{name}` must "):
        RadioConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 33}, r"`hidden_size` must be a multiple of `num_attention_heads` \(2\), got 33"),
        (
            {"max_img_size": 250},
            r"`max_img_size` must be a multiple of .* \(16\), got 250. The nearest is 256",
        ),
        ({"summary_idxs": [0, 3]}, r"`summary_idxs` must lie in \[0, 3\), the class tokens, got \[0, 3\]"),
        ({"summary_idxs": [-1]}, r"`summary_idxs` must .*, got \[-1\]"),
        ({"vitdet_window_size": 0}, r"`vitdet_window_size` must be in \[1, 1048576\], got 0"),
        ({"max_resolution": 15}, r"`max_resolution` must be None or at least `patch_size` \(16\), got 15"),
        ({"norm_mean": [0.5]}, r"`norm_mean` must have `num_channels` \(3\) numbers, got \[0.5\]"),
        ({"num_channels": 4}, r"`norm_mean` must have `num_channels` \(4\) numbers"),
        ({"num_intermediate_normalizers": 2}, r"`num_intermediate_normalizers` must be 0 or `num_hidden_layers` \(4\)"),
        ({"mlp_ratio": 1e-9}, r"`mlp_ratio` times `hidden_size` \(32\) must be in \[1, 1048576\], got 1e-09"),
        (
            {"video_temporal_patch_size": 1},
            r"`video_temporal_patch_size` must be in \[2, 1048576\], got 1",
        ),
    ],
)
def test_networks_that_cannot_be_built(fields, message):
    with pytest.raises(ValueError, match=message):
        RadioConfig.from_preset("radio-test", **fields)


@pytest.mark.parametrize(
    ("fields", "blocks"),
    [
        ({"vitdet_num_global": 4}, [1, 3, 5, 7]),
        ({"vitdet_num_global": 3}, [1, 3, 5, 7]),
        ({"vitdet_num_global": 20}, list(range(8))),
        ({"vitdet_num_windowed": 2}, [2, 5, 7]),
        ({"vitdet_num_windowed": 0, "vitdet_num_global": 1}, list(range(8))),
    ],
)
def test_global_blocks_end_periods_and_the_network(fields, blocks):
    assert RadioConfig.from_preset("radio-test", num_hidden_layers=8, **fields).global_blocks == blocks


def test_summary_defaults_to_the_first_two_class_tokens():
    assert RadioConfig().summary_idxs == [0, 1]
    assert RadioConfig(num_cls_tokens=1).summary_idxs == [0]


ADAPTORS_HEADS = [
    {"name": "siglip2-g", "hidden_size": 8, "summary_dim": 4},
    {"name": "dino_v3", "hidden_size": 8, "feature_dim": 6, "token_index": 1},
]


def adaptors_tiny(**fields) -> RadioConfig:
    return RadioConfig.from_preset("radio-test", **fields)


def test_an_adaptor_is_found_by_name():
    adaptor = adaptors_tiny(adaptors=ADAPTORS_HEADS).adaptor("dino_v3")
    assert adaptor == RadioAdaptorConfig(name="dino_v3", hidden_size=8, feature_dim=6, token_index=1)


def test_an_unknown_adaptor_is_answered_with_a_suggestion():
    message = r"`text_adaptor` must be one of \['siglip2-g', 'dino_v3'\], got 'dinov3'. Did you mean 'dino_v3'\?"
    with pytest.raises(ValueError, match=message):
        adaptors_tiny(adaptors=ADAPTORS_HEADS).adaptor("dinov3", argument="text_adaptor")
    with pytest.raises(ValueError, match=r"`adaptor_names` must be one of \['siglip2-g', 'dino_v3'\], got 'siglip'"):
        adaptors_tiny(adaptors=ADAPTORS_HEADS, adaptor_names=["siglip"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"feature_mlp_version": "v0"},
            r"`adaptors.siglip2-g.feature_mlp_version` must be .* or None, got 'v0'",
        ),
        ({"mlp_version": "v3"}, r"`adaptors.siglip2-g.mlp_version` must be 'v1' or 'v2', got 'v3'"),
        ({"feature_head": "atention"}, "`adaptors.siglip2-g.feature_head` must be 'mlp' or 'attention'"),
        ({"token_index": 3}, r"`adaptors.siglip2-g.token_index` must lie in \[0, 3\)"),
        ({"token_index": -1}, r"`adaptors.siglip2-g.token_index` must be in \[0, 1048576\], got -1"),
        ({"name": "a.b"}, "`adaptors.name` must be .*, got 'a.b'"),
        (
            {"feature_head": "attention", "feature_num_attention_heads": 5},
            r"`adaptors.siglip2-g.feature_num_attention_heads` must divide `hidden_size` \(32\), got 5",
        ),
    ],
)
def test_an_impossible_adaptor_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        adaptors_tiny(adaptors=[{**ADAPTORS_HEADS[0], **fields}])


def test_two_adaptors_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"`adaptors` must have distinct names, got \['dino_v3', 'dino_v3'\]"):
        adaptors_tiny(adaptors=[ADAPTORS_HEADS[1], ADAPTORS_HEADS[1]])


def config(**overrides) -> RadioConfig:
    return RadioConfig(**{**FIELDS, **overrides})


def test_what_follows_from_two_mergings():
    twice = config(downscale_levels=[0, 2], decoder_depth=6)
    assert twice.num_mergings == 2
    assert [twice.block_hidden_size(block) for block in range(3)] == [32, 32, 64]
    assert twice.merged_intermediate_size(2) == 4 * twice.intermediate_size
    assert twice.splitting_blocks == [2, 4]
    assert twice.filler_side == 2  # 8 x 8 positions, halved twice
    assert twice.block_grid(Resolution(3, 5), 2) == (1, 2)
    assert twice.count_global_tokens(Resolution(5, 7)) == 2  # 35 // 16, of a grid of 2 x 2
    assert [twice.decoder_heads(splits) for splits in range(3)] == [2, 1, 1]
    assert not twice.has_windowed_blocks


def test_one_merging_is_undone_in_the_middle_as_in_nvidias_code():
    assert config(decoder_depth=6).splitting_blocks == [3]


def test_heads_read_what_has_a_token_for_each_patch():
    deep = config(num_hidden_layers=12, downscale_levels=[9], vitdet_num_global=4)
    assert deep.full_grid_blocks == [*range(9), 11]
    assert deep.dpt_blocks == [2, 5, 8, 11]
    with pytest.raises(ValueError, match=r"`dpt_indices` must be among .* The nearest to 10 is 11"):
        config(num_hidden_layers=12, downscale_levels=[9], dpt_indices=[2, 5, 8, 10])
    with pytest.raises(ValueError, match="`detection_indices` must be among"):
        config(num_hidden_layers=12, downscale_levels=[9], detection_indices=[9])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"downscale_levels": [3]}, r"`downscale_levels` must be ascending blocks in \[0, 3\)"),
        ({"downscale_levels": [1, 1]}, "`downscale_levels` must be ascending"),
        ({"decoder_upscale_levels": [2]}, r"`decoder_upscale_levels` must be 1 ascending blocks in \[0, 2\)"),
        ({"decoder_upscale_levels": [0, 1]}, "`decoder_upscale_levels` must be 1 ascending"),
        ({"merged_intermediate_sizes": [4, 8]}, "`merged_intermediate_sizes` must have one width for each"),
        ({"vitdet_window_size": 4}, "`vitdet_window_size` must be None with `downscale_levels`, got 4"),
        ({"use_swiglu_ffn": True}, "`use_swiglu_ffn` must be False"),
        ({"hidden_size": 14, "num_attention_heads": 7}, "`num_attention_heads` must leave heads that divide"),
        ({"num_tokens": -1}, "`num_tokens` must be"),
        ({"downscale_levels": None, "num_tokens": 3}, "`num_tokens` must be None without `downscale_levels`, got 3"),
        ({"downscale_levels": None, "qk_norm": True}, "`qk_norm` must be False without `downscale_levels`"),
    ],
)
def test_what_cannot_be_built_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_native_transformers_is_told_apart():
    assert "tokens that are merged, and a decoder" in native_differences(config())
    assert "tokens that are merged, and a decoder" not in native_differences(config(downscale_levels=None))


@pytest.mark.parametrize(
    ("preset", "blocks"),
    [
        ("c-radio_v3-b", [2, 5, 8, 11]),
        ("c-radio_v3-l", [5, 11, 17, 23]),
        ("c-radio_v4-so400m", [5, 11, 17, 26]),
        ("c-radio_v4-h", [7, 15, 23, 31]),
        ("radio_v2.5-g", [9, 19, 29, 39]),
    ],
)
def test_dpt_reads_four_global_blocks(preset, blocks):
    assert RadioConfig.from_preset(preset).dpt_blocks == blocks


def test_without_choice_the_detector_reads_the_global_blocks():
    assert RadioConfig.from_preset("radio_v2.5-g").detection_blocks == [4, 9, 14, 19, 24, 29, 34, 39]
    assert RadioConfig.from_preset("radio-test", detection_indices=[0, 2]).detection_blocks == [0, 2]
    assert RadioConfig.from_preset("radio-test", dpt_indices=[0, 1, 1, 3]).dpt_blocks == [0, 1, 1, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"detection_hidden_size": 40}, "`detection_hidden_size` must be a multiple of 32, got 40. The nearest is 32"),
        ({"detection_indices": [3, 1]}, r"`detection_indices` must be ascending blocks in \[0, 4\)"),
        ({"detection_indices": [4]}, r"`detection_indices` must be ascending blocks in \[0, 4\)"),
        ({"detection_indices": []}, r"`detection_indices` must be ascending blocks in \[0, 4\)"),
        ({"detection_num_groups": 0}, r"`detection_num_groups` must be in \[1, 1048576\], got 0"),
    ],
)
def test_detectors_that_cannot_be_built(overrides, message):
    with pytest.raises(ValueError, match=message):
        RadioConfig.from_preset("radio-test", **overrides)


CONFIG_FIELDS = [each.name for each in dataclasses.fields(RadioConfig) if not each.name.startswith("_")]
COUNTS = [0, -1, True, 1.0, "1", None, math.nan, LARGEST + 1, 10**400]
SHARES = [-0.1, 1, 5, math.nan, math.inf, True, "0.1", None]
FLAGS = [0, 1, "False", None, []]
BLOCKS = ["0123", [0.0], [True], ["0"], [-1], 3, {0: 1}]
WRONG = {
    "hidden_size": COUNTS,
    "num_hidden_layers": [*COUNTS, MOST_BLOCKS + 1],
    "num_attention_heads": COUNTS,
    "intermediate_size": [-1, True, 1.5, "64", None],
    "mlp_ratio": [-1, math.nan, math.inf, "abc", True, None],
    "hidden_act": [3, "abc", None, ["gelu"], "xielu"],
    "layer_norm_eps": [0, -2.5, math.nan, "1e-6", True, None],
    "attention_probs_dropout_prob": SHARES,
    "hidden_dropout_prob": SHARES,
    "drop_path_rate": SHARES,
    "layerscale_value": [math.nan, math.inf, "1", True, None],
    "num_channels": COUNTS,
    "patch_size": [*COUNTS, 0.5],
    "image_size": COUNTS,
    "max_img_size": [*COUNTS, math.inf],
    "max_resolution": [0, -1, "x", True, 64.0],
    "preferred_resolution": [[0, 0], [64], [64, 64, 64], 64, "64", None, [64.0, 64.0], [True, True]],
    "norm_mean": [5, "abc", None, [0, 0, math.nan], ["a", "b", "c"], [0.5, 0.5]],
    "norm_std": [[0, 0, 0], [-1, 1, 1], [1, 1, math.inf], None, [1, 1]],
    "num_cls_tokens": COUNTS,
    "num_registers": [-1, 1.0, math.nan, True, "7", None],
    "summary_idxs": [5, "01", [-1], [True], [0.0], [None]],
    "num_intermediate_normalizers": [-1, True, 1.0, "4", None, 2],
    "video_temporal_patch_size": ["2", 0, True, 2.0, 1],
    "initializer_range": [0, -1, math.nan, "0.02", True, None],
    "eradio": [[], 5, "eradio"],
    "vitdet_window_size": [0, -1, True, 8.0, math.nan, math.inf, "8"],
    "vitdet_num_global": [*COUNTS, False],
    "vitdet_num_windowed": [-1, True, 1.0, "1"],
    "downscale_levels": BLOCKS,
    "merged_intermediate_sizes": ["0123", [0.0], [True], [0], [-1], 3],
    "qk_norm": FLAGS,
    "progressive_reduction": FLAGS,
    "decoder_depth": [*COUNTS, MOST_BLOCKS + 1],
    "decoder_upscale_levels": BLOCKS,
    "filler_grid_size": [0, -1, True, 8.0, "8"],
    "num_tokens": [-1, True, 1.0, "4", 3],
    "adaptors": [None, 5, "x", [5], {"name": "x"}],
    "adaptor_names": [5, "siglip2-g", [5], {"a": 1}],
    "classifier_pooling": [3, None, "mean", ["summary"]],
    "segmentation_head": [3, None, "mlp"],
    "class_weights": [5, "abc", [-1.0], [math.nan], [0.0, 0.0], [True], []],
    "semantic_loss_ignore_index": ["255", None, 255.0, True],
    "dpt_indices": BLOCKS,
    "dpt_hidden_size": ["256", 0, -2, True, 256.0, None, 3],
    "detection_indices": BLOCKS,
    "detection_hidden_size": ["256", 0, True, 256.0, None],
    "detection_num_layers": COUNTS,
    "detection_num_queries": COUNTS,
    "detection_num_groups": COUNTS,
    "detection_window_size": [0, -3, True, 16.0, "automatic", [16], math.nan],
    "temperature": [0, -1.0, "warm", True, math.nan],
    "score_thresholds": [0.5, [1.5], ["a"], [-0.1]],
    "text_tower": [5, "siglip", [], {"a": {1}}, {"a": [{1: "b", "c": 2}]}],
    "text_adaptor": [5, ["siglip2-g"]],
    "feature_pyramid_size": COUNTS,
    "out_features": [5, "stage1", [1], ["stage9"]],
    "out_indices": [5, "1", ["1"], [1.0], [9], [2, 1]],
    "version": [4, ["c-radio_v4-h"]],
    "nvidia_source": [5, "x", [], {"args": {"dtype": torch.float16}}],
    "transformers_version": [5],
    "architectures": [5, "RadioModel", [5]],
    "output_hidden_states": ["yes", 1, [0, 2]],
    "return_dict": ["yes", 0],
    "dtype": ["auto", "float33", 16, torch.int8, "int8", ["float32"]],
    "chunk_size_feed_forward": [-1, "0", None],
    "is_encoder_decoder": FLAGS,
    "num_labels": [0, -1, "3", 2.0, True, torch.zeros(2)],
    "id2label": [5, "ab", ["a", "b"], {}, {"a": "b"}, {1: "cat"}, {0: 5}, {0.5: "a"}, {"-1": "a"}],
    "label2id": [5, "ab", {0: "a"}, {"a": None}, {"a": 0, "b": "1"}],
    "problem_type": ["regressions", 5],
    **{
        name: FLAGS
        for name in CONFIG_FIELDS
        if name.startswith(("use_", "pos_embed_", "qkv_", "intermediate_rotation_"))
    },
}


def config_tiny(**fields) -> RadioConfig:
    return RadioConfig.from_preset("radio-test", **fields)


def test_every_field_is_tried():
    assert set(CONFIG_FIELDS) | {"num_labels", "out_features", "out_indices"} == set(WRONG)


def set_and_check(config: RadioConfig, name: str, value: object) -> None:
    setattr(config, name, value)
    config.check()  # as a model does that is built from it


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_name(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"\b{name}\b") as refused:
            config_tiny(**{name: value})
        shown = re.escape(repr(value)[:50])
        assert re.search(f"got .*{shown}", str(refused.value)) or name.startswith("out_"), value
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            set_and_check(config_tiny(), name, value)


def test_every_default_and_every_preset_keeps_the_rules():
    for config in (RadioConfig(), *map(RadioConfig.from_preset, RadioConfig.presets)):
        config.check()


@pytest.mark.parametrize("value", [np.int64(64), torch.tensor(64)])
def test_numbers_of_arrays_are_refused(value):
    """They could not be written to `config.json`."""
    with pytest.raises(ValueError, match="`hidden_size` must be an integer"):
        config_tiny(hidden_size=value)
    with pytest.raises(ValueError, match="`norm_mean` must be a list"):
        config_tiny(norm_mean=torch.zeros(3))


def test_a_long_value_is_cut():
    with pytest.raises(ValueError, match=r"`version` must be a string or None, got \[0, 0") as refused:
        config_tiny(version=[0] * 10_000)
    assert len(str(refused.value)) < 300


def test_what_is_no_field_stays_free():
    config = RadioConfig.from_preset("radio-test")
    config.my_own_note = object
    assert RadioConfig(my_own_note=[1]).my_own_note == [1]
    assert config.my_own_note is object


def test_names_of_types_and_labels_from_json_are_read():
    config = config_tiny(dtype="bfloat16", id2label={"0": "cat", "1": "dog"})
    assert (config.dtype, config.id2label) == (torch.bfloat16, {0: "cat", 1: "dog"})
    assert config_tiny(norm_mean=(0, 0, 0), summary_idxs=(1,)).norm_mean == [0, 0, 0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"hidden_size": 8}, r"An entry of `adaptors` lacks \['name'\]"),
        ({"name": "a"}, r"An entry of `adaptors` lacks \['hidden_size'\]"),
        ({"name": "", "hidden_size": 8}, "`adaptors.name` must be"),
        ({"name": 5, "hidden_size": 8}, "`adaptors.name` must be .*, got 5"),
        ({"name": "items", "hidden_size": 8}, "`adaptors.name` must be .*, got 'items'"),
        ({"name": "train", "hidden_size": 8}, "`adaptors.name` must be .*, got 'train'"),
        ({"name": "backbone", "hidden_size": 8}, "`adaptors.name` must be .*, got 'backbone'"),
        ({"name": "a", "hidden_size": "8"}, "`adaptors.a.hidden_size` must be an integer, got '8'"),
        ({"name": "a", "hidden_size": 8, "upsample_factor": 0.5}, "`adaptors.a.upsample_factor` must .*, got 0.5"),
        ({"name": "a", "hidden_size": 8, "summary_dim": True}, "`adaptors.a.summary_dim` must .*, got True"),
        ({"name": "a", "hidden_size": 8, "num_inner_blocks": 10**6}, "`adaptors.a.num_inner_blocks` must .*, got 1000"),
        ({"name": "a", "hidden_size": 8, "width": 8}, "Unknown key 'width' in `adaptors`"),
    ],
)
def test_a_wrong_adaptor_is_refused_by_name(entry, message):
    with pytest.raises(ValueError, match=message):
        config_tiny(adaptors=[entry])
    config = config_tiny()
    with pytest.raises(ValueError, match=message):
        set_and_check(config, "adaptors", [entry])
