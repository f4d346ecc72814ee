"""What the configuration answers and refuses, and what it makes of widths; the presets are in `test_releases_radio`."""

import dataclasses
import json

import pytest
import torch
from transformers import PreTrainedConfig, ViTConfig
from transformers.models.radio.configuration_radio import RadioConfig as NativeRadioConfig

from modeling_radio import RadioConfig, RadioModel
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


@pytest.mark.parametrize("name", ["id2label", "label2id"])
def test_names_of_classes_cannot_be_taken_away(name):
    config = tiny(num_labels=3)
    setattr(config, name, None)
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
