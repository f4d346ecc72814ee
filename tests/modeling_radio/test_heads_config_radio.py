"""Which blocks the heads read, and which heads cannot be built."""

import pytest

from modeling_radio import RadioConfig


@pytest.mark.parametrize(
    ("preset", "blocks"),
    [
        ("c-radio_v3-b", [2, 5, 8, 11]),
        ("c-radio_v3-l", [5, 11, 17, 23]),
        ("c-radio_v4-so400m", [5, 11, 17, 26]),
        ("c-radio_v4-h", [7, 15, 23, 31]),
        ("radio_v2.5-g", [9, 19, 29, 39]),
    ],
)
def test_dpt_reads_four_global_blocks(preset, blocks):
    assert RadioConfig.from_preset(preset).dpt_blocks == blocks


def test_without_choice_the_detector_reads_the_global_blocks():
    assert RadioConfig.from_preset("radio_v2.5-g").detection_blocks == [4, 9, 14, 19, 24, 29, 34, 39]
    assert RadioConfig.from_preset("radio-test", detection_indices=[0, 2]).detection_blocks == [0, 2]
    assert RadioConfig.from_preset("radio-test", dpt_indices=[0, 1, 1, 3]).dpt_blocks == [0, 1, 1, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"detection_hidden_size": 40}, "`detection_hidden_size` must be a multiple of 32, got 40. The nearest is 32"),
        ({"detection_indices": [3, 1]}, r"`detection_indices` must be ascending blocks in \[0, 4\)"),
        ({"detection_indices": [4]}, r"`detection_indices` must be ascending blocks in \[0, 4\)"),
        ({"detection_indices": []}, r"`detection_indices` must be ascending blocks in \[0, 4\)"),
        ({"detection_num_groups": 0}, r"`detection_num_groups` must be in \[1, 1048576\], got 0"),
    ],
)
def test_detectors_that_cannot_be_built(overrides, message):
    with pytest.raises(ValueError, match=message):
        RadioConfig.from_preset("radio-test", **overrides)
