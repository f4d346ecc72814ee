import numpy as np
import pytest
from photographs import encode, flat, picture
from PIL import Image, ImageEnhance

from training.data.decoding import EncodedImage, UnusableImageError, decode_rgb
from training.data.filters.facts import difference_hash, measure


def distance(first: Image.Image, second: Image.Image) -> int:
    return ((difference_hash(first) ^ difference_hash(second)) & (2**64 - 1)).bit_count()


def test_header_alone_tells_the_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert measure(encode(picture(0), "JPEG", exif=exif), with_pixels=False) == (96, 64, 0.0, 0)
    assert measure(encode(picture(0)), with_pixels=False) == (64, 96, 0.0, 0)


def test_deviation_tells_one_color_from_many() -> None:
    deviations = [measure(encode(each), with_pixels=True).deviation for each in (flat(128), flat(3), picture(0))]
    assert max(deviations[:2]) < 0.5
    assert deviations[2] > 20
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 64)  # red from row to row, no other color
    assert measure(encode(Image.fromarray(ramp)), with_pixels=True).deviation == pytest.approx(255 / 12**0.5, rel=0.03)


def test_hash_stays_when_an_image_is_copied_in_another_size_quality_or_brightness() -> None:
    image = picture(1, 960, 640)
    copies = [
        picture(1, 480, 320),
        decode_rgb(encode(image, "JPEG", quality=20)),
        ImageEnhance.Brightness(image).enhance(0.7),
        image.convert("L").convert("RGB"),
    ]
    assert max(distance(image, copy) for copy in copies) <= 3
    assert min(distance(image, picture(seed)) for seed in range(2, 30)) > 10
    assert distance(image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) > 10


def test_a_large_jpeg_has_the_facts_of_its_small_copy() -> None:
    large, small = (measure(encode(picture(2, 12 * n, 8 * n), "JPEG"), with_pixels=True) for n in (160, 20))
    assert (large.height, large.width) == (1280, 1920)
    assert large.deviation == pytest.approx(small.deviation, rel=0.02)
    assert ((large.hash ^ small.hash) & (2**64 - 1)).bit_count() <= 1


@pytest.mark.parametrize("image", [EncodedImage("text", b"no image"), encode(picture(0, 31, 64))])
def test_unusable_images_have_no_facts(image: EncodedImage) -> None:
    with pytest.raises(UnusableImageError):
        measure(image, with_pixels=False)
