import numpy as np
import pytest

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import round_to_step
from modeling_radio.image_processing_radio import RadioImageProcessor


@pytest.mark.parametrize(("size", "expected"), [(0, 16), (23.9, 16), (24, 32), (40, 32), (48, 48)])
def test_halves_go_to_the_even_multiple_and_nothing_vanishes(size, expected):
    assert round_to_step(size, 16) == expected


def test_nearest_size_is_valid_and_capped():
    config = RadioConfig.from_preset("radio-test", max_resolution=100)
    nearest = config.nearest_resolution(1000, 1)
    assert nearest == (100 // config.patch_size * config.patch_size, config.patch_size)
    config.check_resolution(*nearest)


def test_invalid_sizes_name_the_nearest():
    config = RadioConfig.from_preset("radio-test")
    height, width = config.patch_size * 2 + 1, config.patch_size
    with pytest.raises(ValueError, match=f"The nearest valid size is {height - 1} x {width}"):
        config.check_resolution(height, width)


# What the processor resizes to


@pytest.mark.parametrize(
    ("image_size", "size", "expected"),
    [
        ((480, 640), {"shortest_edge": 256}, (256, 336)),
        ((480, 640), 256, (256, 336)),
        ((640, 480), {"shortest_edge": 256}, (336, 256)),
        ((480, 640), {"longest_edge": 512}, (384, 512)),
        ((480, 640), {"longest_edge": 500}, (368, 496)),
        ((100, 1000), {"shortest_edge": 256, "longest_edge": 512}, (48, 512)),
        ((480, 640), {"height": 224, "width": 256}, (224, 256)),
        ((480, 640), (224, 256), (224, 256)),
        ((481, 629), {"max_pixels": 2048 * 2048}, (480, 624)),
        ((3000, 4000), {"max_pixels": 512 * 512}, (432, 576)),
        ((30, 40), {"min_pixels": 224 * 224}, (192, 256)),
        ((480, 640), {"shortest_edge": 1024, "max_pixels": 512 * 512}, (432, 576)),
        ((5, 5), {"max_pixels": 2048 * 2048}, (16, 16)),
        ((1, 100000), {"shortest_edge": 512}, (16, 2048)),
        ((1, 100000), {"max_pixels": 16 * 160}, (16, 160)),
        ((5000, 6000), {"longest_edge": 6000}, (1712, 2048)),
    ],
)
def test_sizes(image_size, size, expected):
    processor = RadioImageProcessor(size=size)
    assert processor.get_output_size(*image_size) == expected
    assert RadioImageProcessor().get_output_size(*image_size, size=size) == expected


def test_bounds_hold_for_any_image():
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 5000, (200, 2)).tolist():
        rows, cols = RadioImageProcessor().get_output_size(height, width, size={"max_pixels": 300 * 300})
        assert rows % 16 == 0
        assert cols % 16 == 0
        assert rows * cols <= 300 * 300
        rows, cols = RadioImageProcessor(size_divisor=128).get_output_size(height, width)
        assert rows % 128 == 0
        assert cols % 128 == 0
        assert max(rows, cols) <= 2048


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 200, "width": 250}, r"got 200 x 250\. The nearest valid size is 192 x 256"),
        ({"height": 224, "width": 4096}, r"got 224 x 4096\. The nearest valid size is 224 x 2048"),
        ({"height": 224}, "both"),
        ({"shortest_side": 224}, r"shortest_side.*\. Did you mean 'shortest_edge'"),
        ({"shortest_edge": 0}, "positive"),
        ({"longest_edge": 8}, "must have room for one patch of 16 x 16"),
        ({"max_pixels": 100}, "must have room for one patch"),
        ((1, 2, 3), "must be an integer"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        RadioImageProcessor().get_output_size(480, 640, size=size)
