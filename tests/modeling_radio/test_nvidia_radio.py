"""What NVIDIA's training arguments say about a network."""

import pytest

from modeling_radio import RadioConfig
from modeling_radio.nvidia_radio import (
    backbone_fields,
    is_nvidia_config,
    teacher_token_index,
    token_fields,
    version_fields,
)


TEACHERS = [{"name": "clip"}, {"name": "sam", "use_summary": False}, {"name": "clip"}, {"name": "dino_v2"}]


def architecture(name: str, **kwargs) -> RadioConfig:
    return RadioConfig(**backbone_fields({"model": name, "model_kwargs": kwargs, "cpe_max_size": 448}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vit_tiny_patch14_224", (192, 12, 3, 768, 14)),
        ("vit_so400m_patch16_224", (1152, 27, 16, 4304, 16)),
        ("vit_so400m_v2_patch16_224", (1152, 27, 16, 4320, 16)),
        ("vit_giant_patch16_224", (1536, 40, 24, 6144, 16)),
        ("dino_v2_g_student", (1536, 40, 24, 6144, 14)),
        ("dino_v2_l_student", (1024, 24, 16, 4096, 14)),
    ],
)
def test_shape_by_name(name, shape):
    config = architecture(name)
    blocks = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert (*blocks, config.patch_size) == shape
    assert config.use_swiglu_ffn == (name == "dino_v2_g_student")
    assert config.use_final_norm == config.use_patch_bias == config.use_layer_scale == name.startswith("dino")


def test_arguments_change_the_shape():
    config = architecture("vit_base_patch16_224", embed_dim=64, depth=3, num_heads=4, mlp_ratio=2)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 4)
    assert config.intermediate_size == 128


@pytest.mark.parametrize(
    ("name", "kwargs", "layer_scale", "cropped"),
    [
        ("vit_base_patch16_224", {}, False, True),
        ("vit_base_patch16_224", {"img_size": 448}, False, False),
        ("vit_base_patch16_448", {}, False, False),
        ("vit_large_patch16_v2_224", {}, True, True),
    ],
)
def test_layer_scale_and_cropped_positions_by_name(name, kwargs, layer_scale, cropped):
    config = architecture(name, **kwargs)
    assert (config.use_layer_scale, config.use_cropped_positions) == (layer_scale, cropped)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet50", {}, r"`args.model` must be one of .*'vit_base_patch\*'.*'dino_v2_g_student'.*, got 'resnet50'"),
        ("vit_colossal_patch16_224", {}, "`args.model` must be one of .* got 'vit_colossal_patch16_224'"),
        ("vit_base_patch16_224", {"scaled_ln": True}, "`args.model_kwargs.scaled_ln`.* is not supported"),
    ],
)
def test_other_architectures_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        architecture(name, **kwargs)


@pytest.mark.parametrize(
    ("args", "tokens"),
    [
        ({"register_multiple": 8}, (3, 5, [0, 2])),
        ({"register_multiple": 3}, (3, 3, [0, 2])),
        ({"register_multiple": 8, "cpe_num_registers": 2}, (3, 2, [0, 2])),
        ({}, (3, 0, [0, 2])),
        ({"cls_token_per_teacher": False, "register_multiple": 4}, (1, 3, [0])),
    ],
)
def test_tokens(args, tokens):
    fields = token_fields({"teachers": TEACHERS, **args})
    assert (fields["num_cls_tokens"], fields["num_registers"], fields["summary_idxs"]) == tokens


def test_a_teacher_of_two_partitions_has_one_token():
    assert [teacher_token_index({"teachers": TEACHERS}, name) for name in ("clip", "sam", "dino_v2")] == [0, 1, 2]
    assert teacher_token_index({"teachers": TEACHERS, "cls_token_per_teacher": False}, "dino_v2") == 0


def test_the_version_tells_global_blocks_and_at_its_width_how_positions_are_resized():
    assert version_fields("c-radio_v3-b", 768) == {"version": "c-radio_v3-b", "pos_embed_align_corners": True}
    assert version_fields("c-radio_v3-b", 1024)["pos_embed_align_corners"] is False
    assert version_fields("radio_v2.1", 1280)["vitdet_num_windowed"] == 5
    assert version_fields("radio_v2.5-g", 0)["vitdet_num_global"] == 8
    assert version_fields(None, 768) == {"version": None, "pos_embed_align_corners": False}


def test_adaptors_of_a_hub_folder():
    head = {"output_dim": 24, "hidden_dim": 8, "num_inner": 2, "upsample_factor": None}
    config = {
        "args": {
            "model": "vit_tiny_patch16_224",
            "cpe_max_size": 448,
            "register_multiple": 8,
            "teachers": TEACHERS,
            "mlp_version": "v2",
        },
        "adaptor_names": ["sam"],
        "adaptor_configs": {"sam": {"summary": head, "feature": {**head, "hidden_dim": 6, "upsample_factor": 2}}},
        "inter_feature_normalizer_config": {"num_intermediates": 12, "rot_per_layer": True},
    }
    assert is_nvidia_config(config)
    opened = RadioConfig.from_dict(config)
    adaptor = opened.adaptor("sam")
    assert (adaptor.token_index, adaptor.summary_dim, adaptor.feature_dim, adaptor.upsample_factor) == (1, 24, 6, 2)
    assert (adaptor.hidden_size, adaptor.feature_hidden_size, adaptor.num_inner_blocks) == (8, 6, 2)
    assert (opened.num_intermediate_normalizers, opened.intermediate_rotation_per_layer) == (12, True)
    assert not is_nvidia_config(opened.to_dict())
