"""Fuzzing of images: any image, file and setting gives valid pixels, or one error of ours."""

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import FILES
from image_readers import FEWER_FORMATS, READERS, pixels_of
from PIL import Image

from modeling_radio import RadioImageProcessor
from modeling_radio.core.images import copy_image
from modeling_radio.data.decoding import EncodedImage, UnusableImageError, decode_rgb, image_size
from modeling_radio.image_processing_radio import UNREADABLE


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La"]
MODES += ["I;16", "I;16L", "I;16B", "I;16N"]
NUMPY_TYPES = [*"?bBhHiIlLefdgFDO", "U4", "S2", ">u2", "<f4", "M8[s]"]
TORCH_TYPES = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.int64, torch.bool]
TORCH_TYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn]
SIDES = st.sampled_from([0, 1, 2, 3, 4, 16, 33, 64])


@st.composite
def shapes(draw):
    """Shapes of images, channels first, last or absent, and of what is no image."""
    height, width, channels = draw(SIDES), draw(SIDES), draw(st.sampled_from([0, 1, 2, 3, 4, 5]))
    orders = [(height, width, channels), (channels, height, width), (height, width), (2, channels, height, width)]
    return draw(st.sampled_from([*orders, (height,), (), (1, 1, 3, height, width)]))


@st.composite
def values(draw, shape):
    """Bytes, floats in [0, 1], and numbers that no image has."""
    random = np.random.default_rng(draw(st.integers(0, 9)))
    kind = draw(st.sampled_from(["bytes", "unit", "normalized", "large", "nan", "inf", "zero"]))
    array = {
        "bytes": lambda: random.integers(0, 256, shape),
        "unit": lambda: random.random(shape),
        "normalized": lambda: random.normal(size=shape),
        "large": lambda: random.integers(0, 2**31, shape),
    }.get(kind, lambda: np.zeros(shape))()
    if kind in ("nan", "inf") and array.size:
        array.flat[0] = math.nan if kind == "nan" else math.inf
    return array


@st.composite
def arrays(draw):
    """Arrays and tensors of every type, also views that torch does not take."""
    array = draw(values(draw(shapes())))
    if draw(st.booleans()):
        tensor = torch.from_numpy(np.array(array)).to(draw(st.sampled_from(TORCH_TYPES)))
        sparse = torch.sparse_coo_tensor(size=tensor.shape, dtype=tensor.dtype)
        return draw(st.sampled_from([tensor, tensor, tensor.to("meta"), sparse]))
    with np.errstate(all="ignore"):
        array = np.asarray(array).astype(draw(st.sampled_from(NUMPY_TYPES)))
    return array[..., ::-1] if array.ndim and draw(st.booleans()) else array


@st.composite
def pil_images(draw):
    mode, size = draw(st.sampled_from(MODES)), (draw(SIDES), draw(SIDES))
    image = Image.new(mode, size)
    if mode in ("I", "F") and all(size):
        image.putpixel((0, 0), draw(st.sampled_from([0, 200, 60000, 70000, -1])))
    if mode in ("P", "L", "RGB") and draw(st.booleans()):
        image.info["transparency"] = {"P": 0, "L": 0, "RGB": (0, 0, 0)}[mode]
    return image


IMAGES = st.recursive(
    st.one_of(arrays(), pil_images(), st.sampled_from([None, 5, "no file", "", "data:image/", b"bytes", {}, math.nan])),
    lambda images: st.lists(images, max_size=3) | st.tuples(images, images),
    max_leaves=4,
)

ANYTHING = st.sampled_from(
    [None, True, False, -16, 0, 1, 16, 48, 99, 10**30, 0.5, math.nan, math.inf, "x", [], {}, (32, 48)]
)
SIZE = st.dictionaries(
    st.sampled_from(
        [*("height", "width", "shortest_edge", "longest_edge"), *("max_height", "max_width"), "max_pixels", "x"]
    ),
    st.sampled_from([-1, 0, 1, 15, 16, 32, 48, 64, 4000, 2**40, 1.5, None, math.nan]),
    max_size=3,
)
FLAG = st.booleans() | ANYTHING
NAMES = (
    "do_resize",
    "do_rescale",
    "do_convert_rgb",
    "do_pad",
    "do_pack",
    "do_normalize",
    "do_center_crop",
    "do_reduce_labels",
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(NAMES, FLAG),
        **dict.fromkeys(("size", "pad_size", "crop_size"), SIZE | ANYTHING),
        "patch_size": st.sampled_from([1, 8, 14, 16]) | ANYTHING,
        "size_divisor": st.sampled_from([16, 32, None]) | ANYTHING,
        "max_img_size": st.sampled_from([64, 128]) | ANYTHING,
        "rescale_factor": st.sampled_from([1 / 255, 1, 1e-300, 2.0**-40]) | ANYTHING,
        "resample": st.integers(-1, 7) | ANYTHING,
        "image_mean": st.sampled_from([[0, 0, 0], 0.0, [0.5] * 3, [0, 0]]) | ANYTHING,
        "image_std": st.sampled_from([[1, 1, 1], 1.0, [0] * 3]) | ANYTHING,
        "data_format": st.sampled_from(["channels_first", "channels_last"]) | ANYTHING,
        "input_data_format": st.sampled_from(["channels_first", "channels_last"]) | ANYTHING,
        "return_tensors": st.sampled_from(["pt", "np", "tf"]) | ANYTHING,
        "device": st.sampled_from(["cpu", "nowhere", torch.device("cpu")]) | ANYTHING,
        "disable_grouping": FLAG,
    },
)
# Few wrong settings at once, or hardly any image would be read.
SOME_SETTINGS = SETTINGS.map(lambda settings: dict(list(settings.items())[:2]))


def check_pixels(inputs, patch_size):
    """Pixels are in [0, 1], finite, and their sides multiples of the patch, unless they are packed."""
    for image in inputs["pixel_values"]:
        pixels = torch.as_tensor(image)
        assert pixels.dtype == torch.float32
        assert pixels.isfinite().all()
        assert (pixels >= 0).all()
        assert (pixels <= 1).all()
        if "image_grid_hw" not in inputs:
            assert all(side and side % patch_size == 0 for side in pixels.shape[-2:])


def outcome(process):
    """Return what a call returns, or the message of its error, which must be one of ours."""
    try:
        return process()
    except ValueError as error:
        message = str(error)
    assert " must " in message
    assert message.startswith("`")
    return message


@pytest.mark.fuzz
@given(IMAGES, SOME_SETTINGS)
def test_images_and_settings_give_pixels_or_one_error(images, settings):
    processor = RadioImageProcessor(size={"shortest_edge": 32}, max_img_size=128)
    inputs = outcome(lambda: processor(images, **settings))
    if not isinstance(inputs, str):
        check_pixels(inputs, settings.get("patch_size", 16))


@pytest.mark.fuzz
@given(SETTINGS)
def test_settings_hold_alike_at_construction_and_in_calls(settings):
    # At construction None stands for the default.
    settings = {name: value for name, value in settings.items() if value is not None}
    image = Image.new("RGB", (48, 32))
    first = outcome(lambda: RadioImageProcessor(**settings)(image))
    second = outcome(lambda: RadioImageProcessor()(image, **settings))
    if isinstance(first, str):
        assert first == second
    else:
        assert np.array_equal(first["pixel_values"][0], second["pixel_values"][0])


@st.composite
def damaged_files(draw):
    """Files of every format with bytes that are changed, taken out, put in or cut off, mostly at the beginning."""
    content = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))][0])
    for _ in range(draw(st.sampled_from([1, 1, 2, 4, 16]))):
        place = draw(st.integers(0, max(len(content) - 1, 0)) | st.integers(0, min(len(content), 120)))
        new = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"]))
        removed = draw(st.sampled_from([len(new), len(new), len(new), 0, 50, 10**6]))
        content[place : place + removed] = b"" if removed > 8 else new
    return bytes(content)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd EXIF data and large pictures
@given(damaged_files())
def test_damaged_files_are_read_alike_or_count_as_damaged(tmp_path, monkeypatch, content):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    path, image = tmp_path / "picture.img", EncodedImage("x", content)
    path.write_bytes(content)
    found = {}
    for name, (read, error) in READERS.items():
        with contextlib.suppress(error):
            found[name] = pixels_of(read(path, content))
    expected = found.get("read_image_file")
    for name in READERS.keys() - {"processor, PIL", *FEWER_FORMATS}:
        assert (name in found) == (expected is not None), name
        assert expected is None or np.array_equal(found[name], expected), name
    with contextlib.suppress(UnusableImageError):
        decode_rgb(image, lambda size: 0.3)
    with contextlib.suppress(UnusableImageError):
        height, width = image_size(image)
        assert expected is None or (height, width) == expected.shape[:2]
    with contextlib.suppress(UNREADABLE):
        copy_image(path, tmp_path / "copy")
