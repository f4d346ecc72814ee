"""Fields of RADIO1D: what follows from them, and what cannot be built."""

import pytest
from tiny_radio1d import FIELDS

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import Resolution
from modeling_radio.native import native_differences


def config(**overrides) -> RadioConfig:
    return RadioConfig(**{**FIELDS, **overrides})


def test_what_follows_from_two_mergings():
    twice = config(downscale_levels=[0, 2], decoder_depth=6)
    assert twice.num_mergings == 2
    assert [twice.block_hidden_size(block) for block in range(3)] == [32, 32, 64]
    assert twice.block_intermediate_size(2) == 4 * twice.intermediate_size
    assert twice.splitting_blocks == [2, 4]
    assert twice.filler_side == 2  # 8 x 8 positions, halved twice
    assert twice.block_grid(Resolution(3, 5), 2) == (1, 2)
    assert twice.count_global_tokens(Resolution(5, 7)) == 2  # 35 // 16, of a grid of 2 x 2
    assert [twice.decoder_heads(splits) for splits in range(3)] == [2, 1, 1]
    assert not twice.has_windowed_blocks


def test_one_merging_is_undone_in_the_middle_as_in_nvidias_code():
    assert config(decoder_depth=6).splitting_blocks == [3]


def test_heads_read_what_has_a_token_for_each_patch():
    deep = config(num_hidden_layers=12, downscale_levels=[9], vitdet_num_global=4)
    assert deep.full_grid_blocks == [*range(9), 11]
    assert deep.dpt_blocks == [2, 5, 8, 11]
    with pytest.raises(ValueError, match=r"`dpt_indices` must be among .* The nearest to 10 is 11"):
        config(num_hidden_layers=12, downscale_levels=[9], dpt_indices=[2, 5, 8, 10])
    with pytest.raises(ValueError, match="`detection_indices` must be among"):
        config(num_hidden_layers=12, downscale_levels=[9], detection_indices=[9])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"downscale_levels": [3]}, r"`downscale_levels` must be ascending blocks in \[0, 3\)"),
        ({"downscale_levels": [1, 1]}, "`downscale_levels` must be ascending"),
        ({"decoder_upscale_levels": [2]}, r"`decoder_upscale_levels` must be 1 ascending blocks in \[0, 2\)"),
        ({"decoder_upscale_levels": [0, 1]}, "`decoder_upscale_levels` must be 1 ascending"),
        ({"merged_intermediate_sizes": [4, 8]}, "`merged_intermediate_sizes` must have one width for each"),
        ({"vitdet_window_size": 4}, "`vitdet_window_size` must be None with `downscale_levels`, got 4"),
        ({"use_swiglu_ffn": True}, "`use_swiglu_ffn` must be False"),
        ({"hidden_size": 14, "num_attention_heads": 7}, "`num_attention_heads` must leave heads that divide"),
        ({"num_tokens": -1}, "`num_tokens` must be"),
        ({"downscale_levels": None, "num_tokens": 3}, "`num_tokens` must be None without `downscale_levels`, got 3"),
        ({"downscale_levels": None, "qk_norm": True}, "`qk_norm` must be False without `downscale_levels`"),
    ],
)
def test_what_cannot_be_built_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_native_transformers_is_told_apart():
    assert "tokens that are merged, and a decoder" in native_differences(config())
    assert "tokens that are merged, and a decoder" not in native_differences(config(downscale_levels=None))
