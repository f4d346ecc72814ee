"""Passes over a photograph: what the model itself answers, kept for the next click."""

import pytest
import torch

from training.app import passes
from training.app.passes import KEPT_PASSES, Passes, make_pixels, read_window, time_backbone


@pytest.fixture
def photographs():
    return [torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8) for _ in range(KEPT_PASSES + 1)]


def test_windows_are_read_as_they_are_chosen():
    chosen = ["the checkpoint's", "off", "auto", "8", " 12 "]
    assert [read_window(text) for text in chosen] == [None, "global", "auto", 8, 12]
    with pytest.raises(ValueError, match=r"`windows` must be a number of patches or one of .*, got 'small'"):
        read_window("small")
    with pytest.raises(ValueError, match="`window_size` must be at least 1"):
        read_window("0")


def test_a_pass_holds_what_the_model_answers(opened, photographs):
    found = Passes(opened).run(photographs[0], 64, "global")
    pixels = opened.processor(photographs[0], size={"shortest_edge": 64}, return_tensors="pt")["pixel_values"]
    assert found.size == tuple(pixels.shape[-2:]) == (64, 96)
    assert found.grid == (4, 6)
    with torch.no_grad():
        expected = opened.backbone(pixels, window_size="global", feature_format="NCHW", return_dict=True)
    assert list(found.maps) == ["backbone", "siglip2-g", "dino_v2"]
    torch.testing.assert_close(found.maps["backbone"], expected.features)
    torch.testing.assert_close(found.maps["dino_v2"], expected.adaptors["dino_v2"].features)
    assert found.milliseconds > 0


def test_resolution_and_windows_act(opened, photographs):
    run = Passes(opened).run
    assert run(photographs[0], 128, "global").grid == (8, 12)
    without, with_windows = run(photographs[0], 128, "global"), run(photographs[0], 128, 2)
    assert not torch.allclose(without.maps["backbone"], with_windows.maps["backbone"])


def test_the_longer_side_is_bounded(opened):
    panorama = torch.zeros(3, 40, 400, dtype=torch.uint8)
    assert make_pixels(opened, panorama, 128).shape[-1] == opened.model.config.max_img_size


def test_the_last_passes_are_kept(opened, photographs, monkeypatch):
    asked = Passes(opened)
    runs = []
    encode = Passes._encode
    monkeypatch.setattr(Passes, "_encode", lambda self, *args: runs.append(args[1:]) or encode(self, *args))
    first = asked.run(photographs[0], 64, None)
    assert asked.run(photographs[0].clone(), 64, None) is first
    asked.run(photographs[0], 64, 2)
    assert runs == [(64, None), (64, 2)]
    for photograph in photographs[1:]:
        asked.run(photograph, 64, None)
    asked.run(photographs[0], 64, None)
    assert len(runs) == 2 + KEPT_PASSES + 1, "the oldest were forgotten"


def test_a_size_that_the_model_does_not_take_is_refused(opened, photographs):
    with pytest.raises(ValueError, match="`resolution` must have sides that are multiples of 16 and at most 256"):
        Passes(opened).run(photographs[0], 100, None)


def test_devices_are_waited_for(opened, monkeypatch):
    waited = []
    monkeypatch.setattr(passes, "_now", lambda device: waited.append(device.type) or len(waited))
    pixels = make_pixels(opened, torch.zeros(3, 64, 64, dtype=torch.uint8), 64)
    assert time_backbone(opened, pixels, None)[1] == 1000
    assert waited == ["cpu", "cpu"]
