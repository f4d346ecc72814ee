"""Settings of the image processor: each wrong one is one `ValueError` that names it, wherever it comes from."""

import math

import pytest
from PIL import Image
from processor_cases import make_pixels

from modeling_radio import RadioConfig, RadioImageProcessor


WRONG = [
    ("size", {"height": 64}),
    ("size", {"max_height": 64}),
    ("size", "large"),
    ("size", 64.0),
    ("size", True),
    ("size", 2**70),
    ("patch_size", 0),
    ("patch_size", 16.0),
    ("patch_size", True),
    ("size_divisor", -16),
    ("size_divisor", "16"),
    ("size_divisor", 24),
    ("max_img_size", math.inf),
    ("max_img_size", 8),
    ("rescale_factor", 0),
    ("rescale_factor", -1 / 255),
    ("rescale_factor", math.nan),
    ("rescale_factor", 10**400),
    ("rescale_factor", "1/255"),
    ("rescale_factor", 1e-300),
    ("resample", 99),
    ("resample", "bicubic"),
    ("resample", Image.Resampling.HAMMING),
    ("image_mean", [0.5, 0.5, 0.5]),
    ("image_mean", [0.0, math.nan, 0.0]),
    ("image_std", 0.0),
    ("image_std", "1"),
    ("do_resize", 1),
    ("do_rescale", "yes"),
    ("do_pad", 0.0),
    ("do_pack", "no"),
    ("do_convert_rgb", 3),
    ("do_reduce_labels", "x"),
    ("do_normalize", True),
    ("do_center_crop", True),
    ("pad_size", {"height": 64}),
    ("pad_size", {"shortest_edge": 64}),
    ("pad_size", -64),
    ("pad_size", 1.5),
    ("disable_grouping", "x"),
    ("data_format", "channels_last"),
    ("data_format", 3),
    ("input_data_format", "last"),
    ("return_tensors", "tf"),
    ("device", "gpu"),
    ("device", 1.5),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
def test_wrong_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^`{name}` .*must ") as at_call:
        RadioImageProcessor()(make_pixels(), **{name: value})
    with pytest.raises(ValueError, match=rf"^`{name}` .*must ") as at_construction:
        RadioImageProcessor(**{name: value})
    assert str(at_call.value) == str(at_construction.value)


@pytest.mark.parametrize("name", ["patch_size", "max_img_size", "rescale_factor"])
def test_settings_that_cannot_be_none(name):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive"):
        RadioImageProcessor()(make_pixels(), **{name: None})


def test_attributes_are_checked_at_the_next_call():
    processor = RadioImageProcessor()
    processor.resample = 99
    with pytest.raises(ValueError, match=r"`resample` must be one of \[0, 1, 2, 3\]"):
        processor(make_pixels())


def test_misspelt_settings_are_refused_and_what_transformers_writes_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"`do_resise` must be a setting .* Did you mean 'do_resize'"):
        RadioImageProcessor(do_resise=False)
    processor = RadioImageProcessor(processor_class="AutoProcessor", something_of_tomorrow=1)
    processor.save_pretrained(tmp_path)
    assert RadioImageProcessor.from_pretrained(tmp_path).something_of_tomorrow == 1


@pytest.mark.parametrize("value", [0, (0, 0, 0), [0.0, 0.0, 0.0], [0.0] * 4])
def test_normalization_that_changes_nothing_may_be_given(value):
    inputs = RadioImageProcessor()(make_pixels(), image_mean=value, image_std=[1, 1, 1])
    assert inputs["pixel_values"][0].max() <= 1


def test_the_longest_side_is_the_models_and_not_that_of_its_table():
    config = RadioConfig.from_preset("radio-test", max_resolution=128)
    assert config.max_img_size != 128
    assert RadioImageProcessor.from_model_config(config).max_img_size == 128
