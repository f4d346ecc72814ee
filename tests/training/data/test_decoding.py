import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import decoding
from training.data.decoding import EncodedImage, SkippedImages, UnusableImageError, check_header, decode_rgb


def encode(picture: Image.Image, file_format: str = "PNG", **options) -> EncodedImage:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return EncodedImage("x", buffer.getvalue())


def first_pixel(image: EncodedImage) -> tuple[int, ...]:
    picture = decode_rgb(image)
    assert picture.mode == "RGB"
    return picture.getpixel((0, 0))


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (40, 40), 90), (90, 90, 90)),
        (Image.new("1", (40, 40), 1), (255, 255, 255)),
        (Image.new("P", (40, 40)), (0, 0, 0)),
        (Image.new("LA", (40, 40), (90, 255)), (90, 90, 90)),
        (Image.new("RGBA", (40, 40), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.fromarray(np.full((40, 40), 65535, np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((40, 40), 128 * 257, np.uint16)), (128, 128, 128)),
    ],
    ids=["gray", "bilevel", "palette", "gray and alpha", "transparent", "16 bit white", "16 bit gray"],
)
def test_every_mode_becomes_rgb(picture: Image.Image, expected: tuple[int, ...]) -> None:
    assert first_pixel(encode(picture)) == expected


def test_cmyk() -> None:
    red = first_pixel(encode(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG"))
    assert red[0] > 240
    assert max(red[1:]) < 15


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode_rgb(encode(Image.new("RGB", (80, 40)), "JPEG", exif=exif)).size == (40, 80)


def test_a_jpeg_is_shrunk_while_it_is_decoded_but_not_below_the_asked_side() -> None:
    image = encode(Image.new("RGB", (800, 400)), "JPEG")
    assert decode_rgb(image).size == (800, 400)
    assert decode_rgb(image, lambda size: 0.25).size == (200, 100)
    assert decode_rgb(image, lambda size: 0.26).size == (400, 200)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no image in this sample"),
        (b"not a picture", "unreadable"),
        (encode(Image.new("RGB", (400, 31))).content, "too small: 400 x 31 px"),
        (Path("missing.png"), "unreadable.*No such file"),
    ],
)
def test_unusable_headers(content: bytes | Path, message: str) -> None:
    with pytest.raises(UnusableImageError, match=message):
        check_header(EncodedImage("x", content))


def test_unusable_pixels() -> None:
    whole = encode(Image.effect_noise((64, 64), 50))
    truncated = EncodedImage("x", whole.content[:1000])
    check_header(truncated)
    with pytest.raises(UnusableImageError, match="unreadable"):
        decode_rgb(truncated)
    with pytest.raises(UnusableImageError, match=r"pixels from 0.5 to 0.5"):
        decode_rgb(encode(Image.new("F", (40, 40), 0.5), "TIFF"))


def test_pixels_beyond_the_limit_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnusableImageError, match=r"too large: .*4096 pixels.* limit of 2000 pixels"):
        check_header(encode(Image.new("RGB", (64, 64))))
    strips = encode(Image.new("RGB", (40, 40)), "TIFF").content
    tile = strips.replace(struct.pack("<HHII", 278, 4, 1, 40), struct.pack("<HHII", 323, 4, 1, 40_000))
    with pytest.raises(UnusableImageError, match="too large: a tile"):  # which would be decoded whole
        check_header(EncodedImage("x", tile))


def test_skipped_images_are_counted_and_named(caplog, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "MAX_NAMED_SKIPS", 2)
    skipped = SkippedImages()
    for number in range(5):
        assert not skipped.check(EncodedImage(f"shard.tar: {number}.jpg", b"no image"))
    assert skipped.decode(encode(Image.new("RGB", (40, 40)))) is not None
    assert len(skipped) == 5
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3  # the first two, and every second one
    assert "shard.tar: 1.jpg: unreadable" in caplog.text
    assert "(2 skipped so far)" in caplog.text
