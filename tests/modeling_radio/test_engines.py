"""Verdicts on networks, engine by engine, as runs and readings of the engines gave them."""

import pytest

from modeling_radio import RadioConfig
from modeling_radio.engines import TOWER_NAMES, engine_verdicts, tower_name


SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}


def outcomes(config):
    return {verdict.engine: verdict.outcome for verdict in engine_verdicts(config)}


@pytest.mark.parametrize(
    ("fields", "vllm"),
    [
        ({}, "loads"),
        ({"num_registers": 5}, "loads"),
        ({"num_registers": 0}, "loads"),
        ({"num_cls_tokens": 1, "summary_idxs": [0]}, "loads"),
        ({"patch_size": 14, "max_img_size": 2016}, "loads"),
        ({"qkv_bias": False}, "loads"),
        ({"video_temporal_patch_size": 2}, "loads"),
        ({"use_layer_scale": True}, "loads with other outputs"),
        ({"use_final_norm": True}, "loads with other outputs"),
        ({"use_swiglu_ffn": True}, "loads with other outputs"),
        ({"pos_embed_align_corners": True}, "loads with other outputs"),
        ({"intermediate_size": 1024}, "does not load"),
        ({"num_hidden_layers": 6}, "does not load"),
    ],
)
def test_vllm_and_sglang_hold_what_they_held_when_they_were_run(fields, vllm):
    found = outcomes(RadioConfig(**{**SMALL, **fields}))
    assert (found["vLLM"], found["SGLang"]) == (vllm, vllm)
    assert found["llama.cpp"] == "does not load"  # no ViT-H


def test_so400m_is_held_by_transformers_alone():
    config = RadioConfig.from_preset("c-radio_v4-so400m")
    assert tower_name(config) is None
    assert {name for name, outcome in outcomes(config).items() if outcome != "does not load"} == {"transformers"}


def test_c_radio_v4_h_is_held_by_all():
    config = RadioConfig.from_preset("c-radio_v4-h")
    assert tower_name(config) == "vit_huge_patch16_224"
    assert tower_name(config) in TOWER_NAMES
    found = outcomes(config)
    assert found.pop("llama.cpp") == "loads with other outputs"  # its positions have aligned corners
    assert set(found.values()) == {"loads"}
    scaled = RadioConfig.from_preset("c-radio_v4-h", use_layer_scale=True)
    assert outcomes(scaled)["llama.cpp"] == outcomes(scaled)["TensorRT-Edge-LLM"] == "does not load"


@pytest.mark.parametrize("version", ["e-radio_v2", "c-radio_v4-1d-h"])
def test_other_architectures_are_held_by_none(version):
    config = RadioConfig.from_preset(version)
    assert set(outcomes(config).values()) == {"does not load"}
    assert all(verdict.reasons for verdict in engine_verdicts(config))
