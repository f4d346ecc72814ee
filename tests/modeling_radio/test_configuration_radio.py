"""Fields of the configuration: defaults that follow others, values that are refused, files. Presets have a file."""

import dataclasses
import inspect
import json
import math
import re

import numpy as np
import pytest
import torch
from refusals import refused
from tiny_radio1d import FIELDS
from transformers import PreTrainedConfig, ViTConfig
from transformers.models.radio.configuration_radio import RadioConfig as NativeRadioConfig

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.checks_radio import LARGEST, MOST_BLOCKS, Resolution
from modeling_radio.configuration_radio import NATIVE_FIELDS
from modeling_radio.native import native_differences


HEADS = [
    {"name": "siglip2-g", "hidden_size": 8, "summary_dim": 4},
    {"name": "dino_v3", "hidden_size": 8, "feature_dim": 6, "token_index": 1},
]


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


def test_each_concern_describes_the_fields_that_it_declares():
    inherited = {each.name for each in dataclasses.fields(PreTrainedConfig)}
    found = set()
    for concern in (each for each in RadioConfig.__mro__ if each.__name__.endswith("Fields")):
        declared = {name for name in inspect.get_annotations(concern) if not name.startswith("_")} - inherited
        assert set(re.findall(r"^ {8}(\w+): ", concern.__doc__, re.MULTILINE)) == declared
        found |= declared
    assert found == {name for name in CONFIG_FIELDS if name not in inherited}


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
    refused("summary_idxs", lambda: tiny(summary_idxs=[10], **source))
    refused("adaptors.siglip2-g.token_index", lambda: tiny(adaptors=[{**HEADS[0], "token_index": 11}], **source))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adaptor_names": ["nope"]}, "`adaptor_names`"),
        ({"intermediate_size": 100, "mlp_ratio": 2.0}, "`intermediate_size`"),
        ({"patch_size": 24}, "`max_img_size`"),
        ({"return_dict": "no"}, "`return_dict`"),
        ({"out_indices": [7]}, "out_indices"),
    ],
)
def test_overrides_at_load_are_checked_like_all_else(fields, message, tmp_path):
    tiny(adaptors=HEADS).save_pretrained(tmp_path)
    for opened in (RadioConfig, RadioModel):
        with pytest.raises(ValueError, match=message):
            opened.from_pretrained(tmp_path, **fields)


def test_a_field_that_is_set_later_is_checked_when_a_model_is_built():
    config = tiny()
    config.num_attention_heads = 5
    refused("hidden_size", lambda: RadioModel(config))
    config = tiny()
    config.summary_idxs.append("3")  # in place: nobody sees it
    refused("summary_idxs", lambda: RadioModel(config))


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


def test_a_copy_takes_other_maps():
    assert RadioConfig.from_dict({**tiny().to_dict(), "out_indices": [1, 2]}).out_features == ["stage1", "stage2"]
    chosen = tiny(out_indices=[1]).to_dict()
    assert (chosen["out_features"], RadioConfig.from_dict(chosen).out_indices) == (["stage1"], [1])


@pytest.mark.parametrize("name", ["architectures", "summary_idxs", "adaptor_names"])
def test_fields_set_to_none_get_their_default(name):
    config = tiny()
    setattr(config, name, None)
    config.check()
    assert RadioConfig.from_dict(json.loads(config.to_json_string())).to_json_string() == config.to_json_string()


FITTED = {"class_weights": [1.0, 2.0], "temperature": 2.0, "score_thresholds": [0.25, 0.75]}


def fitted(config: RadioConfig) -> dict:
    return {name: getattr(config, name) for name in FITTED}


def test_numbers_of_classes_follow_from_their_names(tmp_path):
    values = tiny().to_dict()
    del values["label2id"]
    (tmp_path / "config.json").write_text(json.dumps({**values, "id2label": {"0": "cat", "1": "dog"}}))
    for config in (tiny(id2label={0: "cat", 1: "dog"}), RadioConfig.from_pretrained(tmp_path)):
        assert config.label2id == {"cat": 0, "dog": 1}


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


def test_a_configuration_of_native_transformers_builds_our_model():
    native = NativeRadioConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_img_size=64, attn_implementation="eager"
    )
    model = RadioModel(native)
    assert isinstance(model.config, RadioConfig)
    assert (model.config.hidden_size, model.config._attn_implementation) == (32, "eager")
    assert model(torch.rand(1, 3, 32, 32)).features.shape == (1, 4, 32)
    assert not set(NATIVE_FIELDS) & set(model.config.to_dict())
    with pytest.raises(ValueError, match="`config`"):
        RadioModel(ViTConfig())


def test_a_slip_in_a_field_is_told():
    with pytest.warns(UserWarning, match="no field 'hiden_size'; it is ignored. Did you mean 'hidden_size'?"):
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
    ("fields", "name"),
    [
        ({"hidden_size": 33}, "hidden_size"),
        ({"intermediate_size": 100, "mlp_ratio": 2.0}, "intermediate_size"),
        ({"max_img_size": 250}, "max_img_size"),
        ({"summary_idxs": [0, 3]}, "summary_idxs"),
        ({"num_cls_tokens": 1, "summary_idxs": [0, 1]}, "summary_idxs"),
        ({"max_resolution": 15}, "max_resolution"),
        ({"norm_mean": [0.5]}, "norm_mean"),
        ({"num_channels": 4}, "norm_mean"),
        ({"num_intermediate_normalizers": 2}, "num_intermediate_normalizers"),
        ({"mlp_ratio": 1e-9}, "mlp_ratio"),
        ({"detection_hidden_size": 40}, "detection_hidden_size"),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, "num_labels"),
        *(({"detection_indices": blocks}, "detection_indices") for blocks in ([3, 1], [4], [])),
        ({"adaptors": HEADS, "adaptor_names": ["siglip"]}, "adaptor_names"),
        ({"adaptors": [HEADS[1], HEADS[1]]}, "adaptors"),
    ],
)
def test_networks_that_cannot_be_built(fields, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        tiny(**fields)


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


def test_an_unknown_adaptor_is_refused():
    refused("text_adaptor", lambda: tiny(adaptors=HEADS).adaptor("dinov3", argument="text_adaptor"))


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


DEEP = {"num_hidden_layers": 12, "downscale_levels": [9]}


def test_heads_read_what_has_a_token_for_each_patch():
    deep = config(**DEEP, vitdet_num_global=4)
    assert deep.full_grid_blocks == [*range(9), 11]
    assert deep.dpt_blocks == [2, 5, 8, 11]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        *(({"downscale_levels": levels}, "downscale_levels") for levels in ([3], [1, 1])),
        *(({"decoder_upscale_levels": levels}, "decoder_upscale_levels") for levels in ([2], [0, 1])),
        ({"merged_intermediate_sizes": [4, 8]}, "merged_intermediate_sizes"),
        ({"vitdet_window_size": 4}, "vitdet_window_size"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ({"hidden_size": 14, "num_attention_heads": 7}, "num_attention_heads"),
        ({"downscale_levels": None, "num_tokens": 3}, "num_tokens"),
        ({"downscale_levels": None, "qk_norm": True}, "qk_norm"),
        ({**DEEP, "dpt_indices": [2, 5, 8, 10]}, "dpt_indices"),
        ({**DEEP, "detection_indices": [9]}, "detection_indices"),
    ],
)
def test_mergings_that_cannot_be_built(fields, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        config(**fields)


def test_without_choice_the_detector_reads_the_global_blocks():
    assert RadioConfig.from_preset("radio_v2.5-g").detection_blocks == [4, 9, 14, 19, 24, 29, 34, 39]
    assert RadioConfig.from_preset("radio-test", detection_indices=[0, 2]).detection_blocks == [0, 2]
    assert RadioConfig.from_preset("radio-test", dpt_indices=[0, 1, 1, 3]).dpt_blocks == [0, 1, 1, 3]


CONFIG_FIELDS = [each.name for each in dataclasses.fields(RadioConfig) if not each.name.startswith("_")]
COUNTS = [0, -1, True, 1.0, "1", None, math.nan, LARGEST + 1, 10**400]
OF_ARRAYS = [np.int64(64), torch.tensor(64)]  # they could not be written to `config.json`
SHARES = [-0.1, 1, 5, math.nan, math.inf, True, "0.1", None]
FLAGS = [0, 1, "False", None, []]
BLOCKS = ["0123", [0.0], [True], ["0"], [-1], 3, {0: 1}]
WRONG = {
    "hidden_size": [*COUNTS, *OF_ARRAYS],
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
    "norm_mean": [5, "abc", None, [0, 0, math.nan], ["a", "b", "c"], [0.5, 0.5], torch.zeros(3)],
    "norm_std": [[0, 0, 0], [-1, 1, 1], [1, 1, math.inf], None, [1, 1]],
    "num_cls_tokens": COUNTS,
    "num_registers": [-1, 1.0, math.nan, True, "7", None],
    "summary_idxs": [5, "01", [-1], [True], [0.0], [None]],
    "num_intermediate_normalizers": [-1, True, 1.0, "4", None, 2],
    "video_temporal_patch_size": ["2", 0, True, 2.0, 1],
    "initializer_range": [0, -1, math.nan, "0.02", True, None],
    "eradio": [[], 5, "eradio"],
    "wrapped": [[], 5, "resnet50"],
    "navit": [[], 5, "navit_small"],
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
    "dpt_indices": [*BLOCKS, [0, 1, 3], [0, 1, 2, 4]],
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
    "text_cleaning": [5, "canonical"],
    "feature_pyramid_size": COUNTS,
    "reshape_hidden_states": FLAGS,
    "nvidia_outputs": FLAGS,
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


def test_every_field_is_tried():
    assert set(CONFIG_FIELDS) | {"num_labels", "out_features", "out_indices"} == set(WRONG)


def set_and_check(config: RadioConfig, name: str, value: object) -> None:
    setattr(config, name, value)
    config.check()  # as a model does that is built from it


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_name(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"\b{name}\b") as refused:
            tiny(**{name: value})
        shown = re.escape(repr(value)[:50])
        assert re.search(f"got .*{shown}", str(refused.value)) or name.startswith("out_"), value
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            set_and_check(tiny(), name, value)


def test_names_of_types_and_labels_from_json_are_read():
    config = tiny(dtype="bfloat16", id2label={"0": "cat", "1": "dog"})
    assert (config.dtype, config.id2label) == (torch.bfloat16, {0: "cat", 1: "dog"})
    assert tiny(norm_mean=(0, 0, 0), summary_idxs=(1,)).norm_mean == [0, 0, 0]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": None}, r"\['name'\]"),
        ({"hidden_size": None}, r"\['hidden_size'\]"),
        *(({"name": name}, "`adaptors.name`") for name in ("", 5, "a.b", "items", "train", "backbone")),
        ({"hidden_size": "8"}, "`adaptors.a.hidden_size`"),
        ({"upsample_factor": 0.5}, "`adaptors.a.upsample_factor`"),
        ({"summary_dim": True}, "`adaptors.a.summary_dim`"),
        ({"num_inner_blocks": 10**6}, "`adaptors.a.num_inner_blocks`"),
        ({"feature_mlp_version": "v0"}, "`adaptors.a.feature_mlp_version`"),
        ({"mlp_version": "v3"}, "`adaptors.a.mlp_version`"),
        ({"feature_head": "atention"}, "`adaptors.a.feature_head`"),
        *(({"token_index": index}, "`adaptors.a.token_index`") for index in (3, -1)),
        ({"feature_head": "attention", "feature_num_attention_heads": 5}, "`adaptors.a.feature_num_attention_heads`"),
        ({"width": 8}, "'width'"),
    ],
)
def test_a_wrong_adaptor_is_refused_by_name(fields, named):
    entry = {name: value for name, value in {"name": "a", "hidden_size": 8, **fields}.items() if value is not None}
    with pytest.raises(ValueError, match=named):
        tiny(adaptors=[entry])
    with pytest.raises(ValueError, match=named):
        set_and_check(tiny(), "adaptors", [entry])
