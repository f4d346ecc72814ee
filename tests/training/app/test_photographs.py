"""Files of visitors: read as they are shown, or refused in one sentence."""

import pytest
import torch
from PIL import Image

from modeling_radio import RadioImageProcessor
from training.app import photographs
from training.app.photographs import read_photograph


PROCESSOR = RadioImageProcessor()


def test_a_photograph_is_turned_as_its_camera_says(picture):
    image = Image.new("RGB", (30, 20), "red")
    image.paste("blue", (0, 0, 15, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pixels = read_photograph(picture(image, exif=exif), PROCESSOR)
    assert (pixels.shape, pixels.dtype) == ((3, 30, 20), torch.uint8)
    assert pixels[:, 2, 10].tolist() == [0, 0, 255]
    assert pixels[:, 27, 10].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16"])
def test_any_mode_becomes_rgb(picture, mode):
    image = Image.linear_gradient("L").resize((20, 10))
    image = Image.new("I;16", (20, 10), 65535) if mode == "I;16" else image.convert(mode)
    pixels = read_photograph(picture(image), PROCESSOR)
    assert pixels.shape == (3, 10, 20)
    assert pixels[0, -1, 0] > 230


def test_transparency_is_laid_on_white(picture):
    assert read_photograph(picture(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), PROCESSOR).min() == 255


def test_what_cannot_be_read_is_refused(picture, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"got none\. Choose one first"):
        read_photograph(None, PROCESSOR)
    for name, content in {"text.svg": b"<svg/>", "broken.jpg": b"\xff\xd8\xff\xe0 no picture"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"such as JPEG, PNG or WebP, got '{name}'") as caught:
            read_photograph(tmp_path / name, PROCESSOR)
        assert str(tmp_path) not in str(caught.value), "no path of the server is told"
    whole = picture(Image.effect_noise((64, 64), 90), "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:600])
    with pytest.raises(ValueError, match=r"got 'half\.png', which cannot be read"):
        read_photograph(whole, PROCESSOR)
    monkeypatch.setattr(photographs, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="at most 0 megapixels, got 64 x 64"):
        read_photograph(picture(Image.new("RGB", (64, 64)), "large.png"), PROCESSOR)


def test_no_format_that_another_program_reads(tmp_path):
    path = tmp_path / "program.eps"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ValueError, match="`image` must be a picture"):
        read_photograph(path, PROCESSOR)
