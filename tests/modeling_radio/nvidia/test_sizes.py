"""Configurations from tensors and arguments: the published shapes, built without memory."""

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.nvidia.sizes import build_config_fields
from modeling_radio.nvidia.source import NvidiaCheckpoint


FOUR = [{"name": name, "use_summary": name != "sam"} for name in ("clip", "siglip2", "dino_v2", "sam")]
OLDER = [{**teacher, "name": teacher["name"].removesuffix("2")} for teacher in FOUR]
THREE = [{"name": name, "use_summary": name != "sam3"} for name in ("siglip2-g", "dino_v3_7b", "sam3")]
ARCHITECTURES = {
    "radio_v2.5-b": ("vit_base_patch16_224", OLDER),
    "radio_v2.5-l": ("vit_large_patch16_224", OLDER),
    "radio_v2.5-h": ("vit_huge_patch16_224", OLDER),
    "radio_v2.5-g": ("dino_v2_g_student", OLDER),
    "c-radio_v3-b": ("vit_base_patch16_v2_224", FOUR),
    "c-radio_v3-l": ("vit_large_patch16_v2_224", FOUR),
    "c-radio_v3-h": ("vit_huge_patch16_224", FOUR),
    "c-radio_v3-g": ("vit_giant_patch16_224", FOUR),
    "c-radio_v4-so400m": ("vit_so400m_patch16_224", THREE),
    "c-radio_v4-h": ("vit_huge_patch16_224", THREE),
}
HEAD = {"hidden_size": 1520, "summary_dim": 1536, "feature_dim": 1408}


def published(version: str, **overrides) -> tuple[RadioConfig, NvidiaCheckpoint, dict[str, torch.Tensor]]:
    """A preset, and the checkpoint that NVIDIA would have published of it: tensors without memory."""
    model_name, teachers = ARCHITECTURES[version]
    preset = RadioConfig.from_preset(version, **{"use_layer_scale": False, **overrides})
    with torch.device("meta"):
        state = RadioModel(preset).state_dict()
    for name, values in (("norm_mean", preset.norm_mean), ("norm_std", preset.norm_std)):
        state[f"radio_model.input_conditioner.{name}"] = torch.tensor(values).view(3, 1, 1)
    del state["radio_model.summary_idxs"]
    dino = model_name.startswith("dino")
    args = {
        "model": model_name,
        "model_kwargs": {},
        "cpe_max_size": preset.max_img_size,
        "cls_token_per_teacher": not dino,
        "register_multiple": None if dino else preset.num_prefix_tokens,
        "teachers": teachers,
        "mlp_version": "v2",
    }
    return preset, NvidiaCheckpoint("file", state, args), state


@pytest.mark.parametrize("version", [name for name in ARCHITECTURES if name != "radio_v2.5-h"])
def test_published_versions_are_recognized_without_their_name(version):
    """`tests/whole/nvidia` compares all fields of releases with stored ones."""
    _, source, state = published(version)
    fields = build_config_fields(state, source)
    assert fields == build_config_fields(state, source, version)
    with torch.device("meta"):
        built = RadioModel(RadioConfig(**fields)).state_dict()
    assert all(built[key].shape == tensor.shape for key, tensor in state.items())


def test_a_named_version_wins_and_other_sizes_are_none():
    _, source, state = published("c-radio_v3-h")
    assert build_config_fields(state, source, "c-radio_v3-h")["pos_embed_align_corners"] is True
    fields = build_config_fields(state, source, "c-radio_v2-vlm-h")
    assert (fields["version"], fields["vitdet_num_global"]) == ("c-radio_v2-vlm-h", 8)
    assert fields["pos_embed_align_corners"] is False
    with pytest.raises(ValueError, match="'c-radio_v5'"):
        build_config_fields(state, source, "c-radio_v5")
    _, source, state = published("c-radio_v3-h", num_hidden_layers=2)
    source.args["model_kwargs"] = {"depth": 2}
    source.args["teachers"] = [{**each, "name": each["name"].replace("2", "2-g")} for each in source.args["teachers"]]
    fields = build_config_fields(state, source)
    assert (fields["version"], fields["pos_embed_align_corners"]) == (None, False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.patch_generator.pos_embed": None, "input_conditioner.norm_std": None}, "pos_embed, .*norm_std"),
        ({"model.patch_generator.pos_embed": 7}, r"`radio_model\.model\.patch_generator\.pos_embed`"),
        ({"model.patch_generator.cls_token.token": 7}, r"`radio_model\.model\.patch_generator\.cls_token\.token`"),
        ({"model.blocks.0.attn.qkv.weight": 7}, r"`radio_model\.model\.blocks\.0\.attn\.qkv\.weight`"),
        ({"model.patch_generator.cls_token.token": (2, 1280)}, "3 teachers but only 2 prefix tokens"),
        ({}, "1408 outputs, which an upsampling by 3 does not divide"),
    ],
)
def test_tensors_that_contradict_the_arguments_are_refused_by_name(changes, named):
    _, source, state = published("c-radio_v4-h", adaptors=[{"name": "sam3", "token_index": 2, **HEAD}])
    source.args["teachers"] = [*THREE[:2], {**THREE[2], "fd_upsample_factor": 3}]
    for key, shape in changes.items():
        if shape is None:
            del state[f"radio_model.{key}"]
        else:
            state[f"radio_model.{key}"] = torch.empty(shape)
    with pytest.raises(ValueError, match=named):
        build_config_fields(state, source)
