import io
import logging
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_radio.data import decoding
from modeling_radio.data.decoding import (
    EncodedImage,
    SkippedImages,
    UnusableImageError,
    check_header,
    content_fingerprint,
    decode_rgb,
    image_size,
    load_image,
)


def encode(picture: Image.Image, file_format: str = "PNG", **options) -> EncodedImage:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return EncodedImage("x", buffer.getvalue())


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
        (Image.new("CMYK", (40, 40), (0, 255, 255, 0)), (254, 0, 0)),
    ],
    ids=["gray", "bilevel", "palette", "gray and alpha", "transparent", "16 bit white", "16 bit gray", "CMYK"],
)
def test_every_mode_becomes_rgb(picture: Image.Image, expected: tuple[int, ...]) -> None:
    decoded = decode_rgb(encode(picture, "JPEG" if picture.mode == "CMYK" else "PNG"))
    assert decoded.mode == "RGB"
    assert decoded.getpixel((0, 0)) == pytest.approx(expected, abs=15 if picture.mode == "CMYK" else 0)


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_exif_orientation_is_applied(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image = encode(Image.new("L", (80, 40)), file_format, exif=exif)
    assert image_size(image) == (80, 40)
    assert decode_rgb(image).size == load_image(image).size == (40, 80)
    assert load_image(image).mode == "L"


def test_a_jpeg_is_shrunk_while_it_is_decoded_but_not_below_the_least_scale() -> None:
    image = encode(Image.new("RGB", (800, 400)), "JPEG")
    sizes = [decode_rgb(image, scale).size for scale in (None, lambda size: 0.25, lambda size: 0.26)]
    assert sizes == [(800, 400), (200, 100), (400, 200)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no image in this sample"),
        (b"not a picture", "unreadable"),
        (encode(Image.new("RGB", (400, 31))).content, "too small: 400 x 31 px"),
        (Path("missing.png"), "unreadable.*No such file"),
        (Path("x" * 5000), "unreadable"),
        (Path("/dev/zero"), "no file with content"),
    ],
)
def test_unusable_headers(content: bytes | Path, message: str) -> None:
    for read in (check_header, decode_rgb):
        with pytest.raises(UnusableImageError, match=message):
            read(EncodedImage("x", content))


def test_unusable_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    truncated = EncodedImage("x", encode(Image.effect_noise((64, 64), 50)).content[:1000])
    check_header(truncated)
    for image, message in ((truncated, "unreadable"), (encode(Image.new("F", (40, 40), 0.5), "TIFF"), "pixels from")):
        with pytest.raises(UnusableImageError, match=message):
            decode_rgb(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    strips = encode(Image.new("RGB", (40, 40)), "TIFF").content
    tile = strips.replace(struct.pack("<HHII", 278, 4, 1, 40), struct.pack("<HHII", 323, 4, 1, 40_000))
    for image in (encode(Image.new("RGB", (64, 64))), EncodedImage("x", tile)):  # a tile would be decoded whole
        with pytest.raises(UnusableImageError, match="too large"):
            check_header(image)


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


def fingerprint(contents: list[bytes], names: Sequence[str] = ()) -> str:
    return content_fingerprint(lambda place: EncodedImage("x", contents[place]), [*map(len, contents)], names)


def test_fingerprints_change_with_every_change_of_few_images() -> None:
    images = [bytes([number]) * 50 for number in range(4)]
    same_size = [*images[:2], b"\x02" * 49 + b"\x09", images[3]]
    different = [fingerprint(each) for each in (images, images[::-1], images[:3], [*images, b""], same_size)]
    different += [fingerprint(images, names) for names in ("abcd", "abce")]
    assert len(set(different)) == len(different)
    assert fingerprint(list(images)) == different[0]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 40])
def test_bytes_and_a_file_of_them_have_the_same_fingerprint(tmp_path: Path, size: int, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "SAMPLE_BYTES", 8)
    content = bytes(range(size))
    (tmp_path / "image").write_bytes(content)
    of_file = content_fingerprint(lambda place: EncodedImage("x", tmp_path / "image"), [size])
    assert of_file == fingerprint([content])
    if size:
        assert of_file not in (fingerprint([content[:-1] + b"\xff"]), fingerprint([b"\xff" + content[1:]]))


def test_fingerprints_of_many_images_read_some_and_measure_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_SAMPLES", 3)
    images = [b"a"] * 10
    before = fingerprint(images)
    changed = [place for place in range(10) if fingerprint([*images[:place], b"b", *images[place + 1 :]]) != before]
    assert changed == [0, 3, 6]
    assert all(fingerprint([*images[:place], b"bb", *images[place + 1 :]]) != before for place in range(10))
