"""NVIDIA's key names map one to one to ours."""

import pytest

from modeling_radio.nvidia.keys import our_keys


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("base_model.inner.blocks.3.ls1.gamma", "radio_model.model.blocks.3.ls1.grandma"),
        ("radio_model.model.inner.norm.bias", "radio_model.model.norm.bias"),
        ("module.base_model.patch_generator.pos_embed", "radio_model.model.patch_generator.pos_embed"),
        ("_heads.1.final.2.bias", "radio_model.adaptors.dino_v3.head_mlp.final.2.bias"),
        ("_heads.dino_v3.final.2.bias", "radio_model.adaptors.dino_v3.head_mlp.final.2.bias"),
        ("_feature_projections.0.blocks.1.ls2.gamma", "radio_model.adaptors.siglip2-g.feat_mlp.blocks.1.ls2.grandma"),
        ("_feature_normalizer.tx", "radio_model.feature_normalizer.tx"),
        ("_intermediate_feature_normalizer.alphas", "radio_model.inter_feature_normalizer.alphas"),
        ("input_conditioner.norm_std", "radio_model.input_conditioner.norm_std"),
    ],
)
def test_each_layout_is_known(theirs, ours):
    assert our_keys([theirs], ["siglip2-g", "dino_v3", "siglip2-g"]) == {theirs: ours}


def test_leftovers_are_dropped_and_unknown_keys_are_not():
    dropped = (
        *("base_model.reg_token", "base_model.inner.mask_token", "radio_model.model.reg_token", "_heads.2.fc1.weight"),
        *("module.base_model.input_conditioner.norm_mean", "base_model.dynamic_rate_projector.weight"),
    )
    assert our_keys(dropped, ["siglip2-g", "dino_v3", "siglip2-g"]) == {}
    unknown = ["base_model.head.weight", "_heads.7.fc1.weight", "optimizer.state", "base_model.pos_embed"]
    mapped = our_keys(unknown, ["dino_v3"])
    assert mapped["optimizer.state"] == "optimizer.state"
    assert mapped["_heads.7.fc1.weight"] == "radio_model.adaptors.7.head_mlp.fc1.weight"
    assert mapped.keys() == set(unknown)
