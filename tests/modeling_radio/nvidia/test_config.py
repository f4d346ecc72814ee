"""Configurations read from NVIDIA's training arguments."""

import pytest

from modeling_radio import RadioConfig
from modeling_radio.nvidia.config import (
    backbone_fields,
    is_nvidia_config,
    release_fields,
    teacher_token_index,
    token_fields,
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
    ("name", "kwargs", "named"),
    [
        *((name, {}, "args.model") for name in ("resnet50", "vit_colossal_patch16_224", "eradio_other")),
        ("vit_base_patch16_224", {"scaled_ln": True}, "args.model_kwargs.scaled_ln"),
        ("radio1d_huge_patch16_224", {}, "args.model_kwargs.downscale_levels"),
        ("radio1d_huge_patch16_224", {"downscale_levels": [3, 9]}, "args.model_kwargs.decoder_upscale_levels"),
    ],
)
def test_other_architectures_are_refused(name, kwargs, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        architecture(name, **kwargs)


@pytest.mark.parametrize(
    ("args", "tokens"),
    [
        ({"register_multiple": 8}, (3, 5, [0, 3])),
        ({"register_multiple": 3}, (3, 3, [0, 3])),
        ({"register_multiple": 8, "cpe_num_registers": 2}, (3, 2, [0, 3])),
        ({"register_multiple": 8, "cpe_num_registers": 0}, (3, 5, [0, 3])),  # which NVIDIA takes as unset
        ({}, (3, 0, [0, 3])),
        ({"cls_token_per_teacher": False, "register_multiple": 4}, (1, 3, [0])),
        ({"model": "dino_v2_g_student", "cpe_num_registers": 4}, (1, 4, [0])),
    ],
)
def test_tokens(args, tokens):
    fields = token_fields({"teachers": TEACHERS, **args})
    assert (fields["num_cls_tokens"], fields["num_registers"], fields["summary_idxs"]) == tokens


@pytest.mark.parametrize(
    ("used", "in_file", "in_folder"),
    [
        ((True, True, True, True), [0, 1, 3], [0, 1, 2, 3]),
        ((False, True, True, False), [1, 2], [1, 2]),  # the first entry that has a summary, not the first entry
        ((True, True, False, True), [0, 1, 3], [0, 1, 3]),
        ((False, False, False, False), [], []),
    ],
)
def test_the_summary_goes_by_position_whatever_the_slots(used, in_file, in_folder):
    entries = zip(TEACHERS, used, (3, 1, 2, 0), strict=True)
    args = {"teachers": [{**teacher, "use_summary": use, "token_slot": slot} for teacher, use, slot in entries]}
    assert token_fields(args)["summary_idxs"] == in_file
    assert token_fields(args, of_hub_folder=True)["summary_idxs"] == in_folder


def test_heads_read_the_slot_or_position_of_their_first_entry():
    def tokens(args, **told):
        return [teacher_token_index(args, name, **told) for name in ("clip", "sam", "dino_v2")]

    assert tokens({"teachers": TEACHERS}) == [0, 1, 3]
    slots = [{**teacher, "token_slot": slot} for teacher, slot in zip(TEACHERS, (2, 0, 5, None), strict=True)]
    assert tokens({"teachers": slots}) == [2, 0, 3]
    assert tokens({"teachers": slots}, head_index=6) == [6, 6, 6]
    for one_token in ({"cls_token_per_teacher": False}, {"model": "dino_v2_g_student"}):
        assert tokens({"teachers": slots, **one_token}) == [0, 0, 0]


def told_by(version: str | None, teachers=("clip", "siglip2-g"), width=1280, depth=32, layer_scale=False, **told):
    args = {"teachers": [{"name": name} for name in teachers], "mlp_version": "v2"}
    args["model"] = "vit_base_patch16_v2_224" if layer_scale else "vit_base_patch16_224"
    shape = {"hidden_size": width, "num_hidden_layers": depth, "patch_size": 16, "use_patch_bias": False}
    return release_fields(args, shape, {"version": version, **told})


@pytest.mark.parametrize(
    ("version", "aligned"),
    [("c-radio_v3-b", True), ("c-radio_v3-h", True), ("c-radio_v3-l", False), ("c-radio_v4-h", False), ("ours", False)],
)
def test_the_version_tells_how_positions_are_resized(version, aligned):
    for width, depth in ((1280, 32), (768, 12), (32, 4)):
        fields = told_by(version, width=width, depth=depth)
        assert (fields["version"], fields["pos_embed_align_corners"]) == (version, aligned)


def test_without_a_version_teachers_and_size_tell_it():
    assert told_by(None)["version"] == "c-radio_v3-h"
    assert told_by(None)["pos_embed_align_corners"] is True
    assert told_by(None, depth=4)["version"] is None
    assert told_by(None, depth=4)["pos_embed_align_corners"] is False


def test_global_blocks_are_the_releases_or_the_generations():
    assert told_by("radio_v2.1")["vitdet_num_windowed"] == 5
    assert told_by("c-radio_v2-g")["vitdet_num_global"] == 8
    assert told_by("c-radio_v4-h") == told_by("c-radio_v4-h", depth=27)
    assert told_by("c-radio_v4-h", depth=4)["vitdet_num_global"] == 1  # four of four would leave no windowed block


def test_sizes_are_what_the_file_says_or_the_releases():
    assert told_by("radio_v2.1")["preferred_resolution"] == [432, 432]
    said = told_by("radio_v2.1", preferred_resolution=[100, 216], max_resolution=512, vitdet_window_size=8)
    assert (said["preferred_resolution"], said["max_resolution"]) == ([96, 224], 512)
    assert said["vitdet_window_size"] == 8


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
    assert opened.nvidia_source["args"] == config["args"]


def test_a_head_of_a_hub_folder_reads_the_token_that_the_folder_names():
    head = {"output_dim": 24, "hidden_dim": 8, "num_inner": 2, "upsample_factor": None}
    args = {
        "model": "vit_tiny_patch16_224",
        "cpe_max_size": 448,
        "register_multiple": 8,
        "teachers": [{"name": "clip", "token_slot": 1}, {"name": "sam", "token_slot": 0}],
        "mlp_version": "v2",
    }
    config = {"args": args, "adaptor_names": ["sam"], "adaptor_configs": {"sam": {"summary": head, "feature": head}}}
    assert RadioConfig.from_dict(config).adaptor("sam").token_index == 0
    config["adaptor_configs"]["sam"]["head_idx"] = 5
    assert RadioConfig.from_dict(config).adaptor("sam").token_index == 5
    args["teachers"][1]["name"] = "another"  # the run lists no teacher of this adaptor's name
    adaptor = RadioConfig.from_dict(config).adaptor("sam")
    assert (adaptor.token_index, adaptor.mlp_version, adaptor.feature_mlp_version) == (5, "v2", None)
    del config["adaptor_configs"]["sam"]["head_idx"]
    with pytest.raises(ValueError, match="`teachers`"):
        RadioConfig.from_dict(config)
