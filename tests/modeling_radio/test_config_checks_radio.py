"""What each field of the configuration may hold: values of a wrong type or out of range, however they are set."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import LARGEST, MOST_BLOCKS


FIELDS = [each.name for each in dataclasses.fields(RadioConfig) if not each.name.startswith("_")]
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
    "num_labels": [0, -1, "3", 2.0, True],
    "id2label": [5, "ab", ["a", "b"], {}, {"a": "b"}, {1: "cat"}, {0: 5}, {0.5: "a"}, {"-1": "a"}],
    "label2id": [5, "ab", {}, {0: "a"}, {"a": None}, {"a": 0, "b": "1"}],
    "problem_type": ["regressions", 5],
    **{name: FLAGS for name in FIELDS if name.startswith(("use_", "pos_embed_", "qkv_", "intermediate_rotation_"))},
}


def tiny(**fields) -> RadioConfig:
    return RadioConfig.from_preset("radio-test", **fields)


def test_every_field_is_tried():
    assert set(FIELDS) | {"num_labels", "out_features", "out_indices"} == set(WRONG)


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


def test_every_default_and_every_preset_keeps_the_rules():
    for config in (RadioConfig(), *map(RadioConfig.from_preset, RadioConfig.presets)):
        config.check()


@pytest.mark.parametrize("value", [np.int64(64), torch.tensor(64)])
def test_numbers_of_arrays_are_refused(value):
    """They could not be written to `config.json`."""
    with pytest.raises(ValueError, match="`hidden_size` must be an integer"):
        tiny(hidden_size=value)
    with pytest.raises(ValueError, match="`norm_mean` must be a list"):
        tiny(norm_mean=torch.zeros(3))


def test_a_long_value_is_cut():
    with pytest.raises(ValueError, match=r"`version` must be a string or None, got \[0, 0") as refused:
        tiny(version=[0] * 10_000)
    assert len(str(refused.value)) < 300


def test_what_is_no_field_stays_free():
    config = RadioConfig.from_preset("radio-test")
    config.my_own_note = object
    assert RadioConfig(my_own_note=[1]).my_own_note == [1]
    assert config.my_own_note is object


def test_names_of_types_and_labels_from_json_are_read():
    config = tiny(dtype="bfloat16", id2label={"0": "cat", "1": "dog"})
    assert (config.dtype, config.id2label) == (torch.bfloat16, {0: "cat", 1: "dog"})
    assert tiny(norm_mean=(0, 0, 0), summary_idxs=(1,)).norm_mean == [0, 0, 0]


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
        tiny(adaptors=[entry])
    config = tiny()
    with pytest.raises(ValueError, match=message):
        set_and_check(config, "adaptors", [entry])
