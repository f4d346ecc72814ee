import pytest

from modeling_radio import RadioConfig
from modeling_radio.resolution_radio import check_resolution, nearest_resolution, round_to_step


@pytest.mark.parametrize(("size", "expected"), [(0, 16), (23.9, 16), (24, 32), (40, 48), (48, 48)])
def test_halves_round_up_and_nothing_vanishes(size, expected):
    assert round_to_step(size, 16) == expected


def test_nearest_size_is_valid_and_capped():
    config = RadioConfig.from_preset("radio-test", max_resolution=100)
    nearest = nearest_resolution(config, 1000, 1)
    assert nearest == (100 // config.patch_size * config.patch_size, config.patch_size)
    check_resolution(config, *nearest)


def test_invalid_sizes_name_the_nearest():
    config = RadioConfig.from_preset("radio-test")
    height, width = config.patch_size * 2 + 1, config.patch_size
    with pytest.raises(ValueError, match=f"the nearest valid size is {height - 1} x {width}"):
        check_resolution(config, height, width)
