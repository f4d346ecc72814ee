"""Networks that cannot be built, and which blocks are global in ViTDet mode."""

import pytest

from modeling_radio import RadioConfig


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
