"""RADIO1D's training arguments, with the defaults of NVIDIA's code."""

import pytest

from modeling_radio.nvidia.radio1d import merging_fields, prefix_counts
from modeling_radio.presets_radio import SIZES


def fields(size: str = "large", **kwargs):
    return merging_fields(SIZES[size], {"downscale_levels": [3], **kwargs}, 16)


def test_defaults():
    assert fields() == {
        "downscale_levels": [3],
        "merged_intermediate_sizes": None,
        "qk_norm": False,
        "progressive_reduction": False,
        "decoder_depth": 6,
        "decoder_upscale_levels": None,
        "filler_grid_size": 7,  # 14 x 14 patches, merged once
        "max_img_size": 224,
        "qkv_bias": True,
        "use_layer_scale": False,
    }


def test_the_width_of_the_mlp_is_rounded_at_each_width():
    """4304 / 1152 of 16 channels is 59.8, of 32 channels 119.6: not twice 59."""
    assert fields("so400m", embed_dim=16)["merged_intermediate_sizes"] == [119]
    assert fields("so400m")["merged_intermediate_sizes"] is None
    assert fields(embed_dim=12, mlp_ratio=3.0)["merged_intermediate_sizes"] is None


def test_fillers_have_the_whole_root():
    two = fields(img_size=208, downscale_levels=[1, 2], decoder_upscale_levels=[1, 2])
    assert two["filler_grid_size"] == 3  # 13 x 13 patches, 10 after two mergings


@pytest.mark.parametrize(
    ("kwargs", "counts"),
    [
        ({"num_cls_tokens": 3, "num_registers": 5}, (3, 5)),
        ({"num_cls_tokens": 3, "register_multiple": 8}, (3, 5)),
        ({"num_cls_tokens": 4, "register_multiple": 4}, (4, 4)),
        ({"num_cls_tokens": 3, "num_registers": 2, "register_multiple": 8}, (3, 2)),
        ({}, (1, 0)),
    ],
)
def test_prefix_tokens(kwargs, counts):
    assert prefix_counts({"model_kwargs": kwargs, "teachers": [{"name": "one"}, {"name": "two"}]}) == counts
