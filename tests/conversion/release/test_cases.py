import pytest
import torch
from PIL import Image
from tiny_eradio import build_eradio
from tiny_radio1d import FIELDS

from conversion.release.comparison import NOISE, PHOTOGRAPH, open_images, pixels_of, plan_cases, read_size
from modeling_radio import RadioConfig


CONFIG = RadioConfig.from_preset("c-radio_v4-h")


def test_sizes_are_rounded_to_what_patches_and_windows_divide():
    cases = plan_cases(CONFIG, ["500", "384x641"], [8])
    assert cases == [(None, ["496x496", "384x640"]), (8, ["512x512", "384x640"])]


def test_by_default_the_preferred_size_comes_first_and_no_size_twice():
    (window, sizes), *others = plan_cases(CONFIG, [], [])
    height, width = CONFIG.preferred_resolution
    assert (window, sizes[0], others) == (None, f"{height}x{width}", [])
    assert len(set(sizes)) == len(sizes) == 3
    assert plan_cases(CONFIG, ["512", "510"], []) == [(None, ["512x512"])]


def test_windows_of_eight_come_by_default_where_the_network_has_windows():
    assert plan_cases(CONFIG, ["512"]) == [(None, ["512x512"]), (8, ["512x512"])]


def test_networks_without_vitdet_windows_run_as_they_are_at_sizes_that_they_take():
    assert plan_cases(build_eradio().config, ["500", "48x80"]) == [(None, ["512x512", "64x64"])]
    assert plan_cases(RadioConfig(**FIELDS), ["50", "48x80"], []) == [(None, ["48x48", "48x80"])]
    with pytest.raises(ValueError, match=r"`windows` must be none for E-RADIO and RADIO1D, .* got \[8\]"):
        plan_cases(build_eradio().config, ["512"], [8])


@pytest.mark.parametrize("text", ["", "0", "0x16", "16x", "x16", "a", "-5", "16x16x16", "1.5"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="`sizes` must be like 512 or 384x640"):
        read_size(text)


def test_a_window_larger_than_the_model_is_refused():
    with pytest.raises(ValueError, match="`windows` must be at most 128 for this model, got 129"):
        plan_cases(CONFIG, ["512"], [129])


def test_pictures_are_the_same_on_every_machine(tmp_path):
    images = open_images([])
    assert list(images) == [PHOTOGRAPH.name, NOISE]
    pixels = pixels_of(images.values(), [(None, ["32x48"]), (2, ["32x48", "64x64"])])
    assert {size: tuple(tensor.shape) for size, tensor in pixels.items()} == {
        "32x48": (2, 3, 32, 48),
        "64x64": (2, 3, 64, 64),
    }
    assert pixels["32x48"].dtype == torch.uint8
    assert torch.equal(pixels["32x48"], pixels_of(open_images([]).values(), [(None, ["32x48"])])["32x48"])
    Image.new("L", (8, 8), 7).save(tmp_path / "gray.png")
    assert list(open_images([tmp_path / "gray.png"])) == ["gray.png"]
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(ValueError, match="`images` must be pictures"):
        open_images([tmp_path / "no.png"])
