"""A picture that is given away keeps its pixels, and nothing that says where it was taken."""

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from modeling_radio.core.images import copy_image


PICTURE = Image.linear_gradient("L").resize((40, 60)).convert("RGB")


@pytest.mark.parametrize(
    ("file_format", "ending"), [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".png")]
)
def test_a_copy_has_no_place_and_no_words(file_format, ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[2] = (48.0, 12.0, 30.0)
    exif[0x010E] = "SECRET"
    words = PngImagePlugin.PngInfo()
    words.add_text("Comment", "SECRET")
    options = {"PNG": {"pnginfo": words}, "JPEG": {"comment": b"SECRET"}, "WEBP": {"lossless": True}, "TIFF": {}}
    source = tmp_path / "source"
    PICTURE.save(source, file_format, exif=exif, xmp=b"<x>SECRET</x>", **options[file_format])
    assert b"SECRET" in source.read_bytes()
    copy = copy_image(source, tmp_path / "1.otter")
    assert copy == tmp_path / f"1.otter{ending}"
    assert b"SECRET" not in copy.read_bytes()
    with Image.open(copy) as file, Image.open(source) as original:
        assert dict(file.getexif()) == {}
        expected = np.asarray(ImageOps.exif_transpose(original), dtype=float)
        assert np.abs(np.asarray(file, dtype=float) - expected).mean() < 1


def test_a_copy_keeps_transparency_and_colors(tmp_path):
    palette = PICTURE.convert("P")
    palette.save(tmp_path / "source.png", transparency=3, icc_profile=b"profile")
    with Image.open(copy_image(tmp_path / "source.png", tmp_path / "copy")) as copy:
        assert copy.info == {"transparency": 3, "icc_profile": b"profile"}
