"""Which images the processor accepts, and that every form of one image gives the same pixels."""

import base64
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processor_cases import make_pixels, process

from modeling_radio.image_processing_radio import RadioImageProcessor, read_label_maps


@pytest.fixture
def processor():
    return RadioImageProcessor(size={"max_pixels": 256 * 256}, max_img_size=256)


def test_pixels_are_rgb_in_unit_range_and_unchanged_without_resizing(processor):
    pixels = make_pixels()
    values = process(processor, Image.fromarray(pixels))
    assert values.dtype == torch.float32
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    torch.testing.assert_close(values[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda pixels: pixels,
        lambda pixels: pixels.transpose(2, 0, 1),
        lambda pixels: torch.from_numpy(pixels),
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
        lambda pixels: pixels.astype(np.int64),
        lambda pixels: pixels.astype(np.float64),
        lambda pixels: pixels.astype(np.uint16) * 257,
        lambda pixels: (pixels.astype(np.uint16) * 257).astype(">u2"),
        lambda pixels: pixels[..., ::-1].copy()[..., ::-1],
        lambda pixels: np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        lambda pixels: Image.fromarray(pixels).convert("RGBA"),
        lambda pixels: [Image.fromarray(pixels)],
        lambda pixels: [[pixels]],
        lambda pixels: pixels[None],
    ],
    ids=[
        *("pil", "hwc", "chw", "torch-hwc", "torch-chw", "int64", "float255", "uint16", "big-endian"),
        *("mirrored", "rgba-array", "rgba-pil", "list", "nested", "batch"),
    ],
)
def test_every_kind_of_image_gives_the_same_pixels(processor, convert):
    pixels = make_pixels()
    expected = process(processor, Image.fromarray(pixels))
    torch.testing.assert_close(process(processor, convert(pixels)), expected, atol=1e-6, rtol=0)


def test_floats_in_unit_range_are_taken_as_they_are_when_declared(processor):
    pixels = make_pixels()
    values = process(processor, pixels.astype(np.float32) / 255, do_rescale=False)
    torch.testing.assert_close(values, process(processor, pixels), atol=1e-6, rtol=0)


def test_paths_are_read(processor, tmp_path):
    pixels = make_pixels()
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    path = tmp_path / "picture.png"
    expected = process(processor, pixels)
    assert torch.equal(process(processor, str(path)), expected)
    assert torch.equal(process(processor, path), expected)
    assert torch.equal(process(processor, [path, [pixels]]), expected.expand(2, -1, -1, -1))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_transparency_of_files_is_white_as_that_of_pil_images(suffix, processor, tmp_path):
    pixels = np.concatenate([make_pixels(), np.full((*make_pixels().shape[:2], 1), 255, np.uint8)], axis=2)
    pixels[:8, :, 3] = 0
    path = tmp_path / f"logo.{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    expected = process(processor, Image.open(path))
    assert (expected[..., :4, :] == 1).all()
    assert torch.equal(process(processor, path), expected)
    assert torch.equal(process(processor, base64.b64encode(path.read_bytes()).decode()), expected)


@pytest.mark.parametrize("num_pictures", [2, 5])
def test_the_first_picture_of_an_animation_is_read(num_pictures, processor, tmp_path, monkeypatch):
    pictures = [Image.new("RGB", (32, 48), (50 * number, 100, 150)) for number in range(num_pictures)]
    path = tmp_path / "animation.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    expected = process(processor, Image.open(path))
    assert expected.shape == (1, 3, 48, 32)
    torch.testing.assert_close(process(processor, path), expected, atol=1e-2, rtol=0)
    assert process(processor, [path, base64.b64encode(path.read_bytes()).decode()]).shape[0] == 2
    # torchvision reads what an address gives, too.
    monkeypatch.setattr(
        "transformers.image_utils.httpx.get", lambda *_, **options: SimpleNamespace(content=path.read_bytes())
    )
    assert torch.equal(process(processor, "https://example.org/animation.gif"), process(processor, path))


@pytest.mark.parametrize("content", [b"no image", None], ids=["damaged", "missing"])
def test_paths_that_cannot_be_read_are_named(processor, tmp_path, content):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"`images` must be image files .* got '{path}'"):
        process(processor, path)


@pytest.mark.parametrize("mode", ["L", "1", "I;16", "I", "F"])
def test_gray_images_become_three_equal_channels(processor, mode):
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 48, axis=0)
    images = {
        "L": Image.fromarray(ramp),
        "1": Image.fromarray(ramp).convert("1", dither=Image.Dither.NONE),
        "I;16": Image.fromarray(ramp.astype(np.uint16) * 257),
        "I": Image.fromarray(ramp.astype(np.int32) * 257),
        "F": Image.fromarray(ramp.astype(np.float32)),
    }
    values = process(processor, images[mode])[0]
    assert images[mode].mode == mode
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    expected = torch.from_numpy(ramp) / 255
    if mode == "1":
        expected = expected.round()
    torch.testing.assert_close(values[0], expected, atol=1e-6, rtol=0)


def test_integers_that_hold_bytes_are_read_as_bytes(processor):
    gray = make_pixels()[..., 0]
    expected = process(processor, gray)
    assert torch.equal(process(processor, Image.fromarray(gray).convert("I")), expected)
    # A file of 16 bits says so: there 255 is almost black.
    deep = process(processor, Image.fromarray(gray.astype(np.uint16)))
    torch.testing.assert_close(deep, expected / 257, atol=1e-6, rtol=0)


def test_gray_arrays_need_no_channel_axis(processor):
    gray = make_pixels()[..., 0]
    expected = process(processor, Image.fromarray(gray))
    assert torch.equal(process(processor, gray), expected)
    assert torch.equal(process(processor, [gray, torch.from_numpy(gray)]), expected.expand(2, -1, -1, -1))


def test_sixteen_bit_png_keeps_its_range(processor, tmp_path):
    depth = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 48, axis=0)
    Image.fromarray(depth).save(tmp_path / "deep.png")
    values = process(processor, Image.open(tmp_path / "deep.png"))[0, 0]
    torch.testing.assert_close(values, torch.from_numpy(depth / 65535).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["array", "pil", "palette"])
def test_transparent_pixels_become_white_and_half_transparent_ones_mix(processor, kind):
    rgba = np.zeros((16, 32, 4), np.uint8)
    rgba[:, 16:] = (255, 0, 0, 128)
    image = {"array": rgba, "pil": Image.fromarray(rgba)}.get(kind)
    if kind == "palette":
        image = Image.new("P", (32, 16))
        image.putpalette([0, 0, 0, 255, 127, 127])
        image.paste(1, (16, 0, 32, 16))
        image.info["transparency"] = 0
    values = process(processor, image)[0]
    assert (values[:, :, :16] == 1).all()
    torch.testing.assert_close(values[:, 0, 20], torch.tensor([1.0, 127 / 255, 127 / 255]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (make_pixels() / 255, {}, "do_rescale=False"),
        (make_pixels() / 32 - 4, {}, "do not normalize"),
        (make_pixels() / 2, {"do_rescale": False}, r"must lie in \[0, 1\]"),
        (make_pixels(), {"do_rescale": False}, "leave it True"),
        (np.full((48, 64, 3), np.nan), {}, "must lie in"),
        (make_pixels().astype(np.int32) * 10, {}, "uint16"),
        (make_pixels() > 99, {}, "multiplied by 255"),
        (np.zeros((48, 64, 2), np.uint8), {}, "1, 3 or 4 channels"),
        (np.zeros((0, 64, 3), np.uint8), {}, "shape"),
        ([], {}, "at least one image, got none"),
        (5, {}, "must be PIL images, numpy arrays, torch tensors or paths, got int"),
        ({"image": 1}, {}, "torch tensors or paths, got dict"),
        (np.array([["a"]]), {}, "must be of integers or floats of at most 64 bits, got <U1"),
        (np.zeros((48, 64, 3), object), {}, "at most 64 bits, got object"),
        (np.zeros((48, 64, 3), np.longdouble), {}, "at most 64 bits"),
        (torch.zeros(3, 48, 64, device="meta"), {}, "must be dense tensors with values, got torch.float32 .* on meta"),
        (torch.zeros(3, 48, 64).to_sparse(), {}, "must be dense tensors"),
        (torch.sparse_coo_tensor(size=(2, 3, 8, 8), dtype=torch.uint16), {}, "must be dense tensors"),
        (Image.new("RGB", (0, 48)), {}, "at least one pixel, got 48 x 0"),
        (Image.new("La", (64, 48)), {}, "Convert them to 'LA'"),
        (Image.fromarray(np.full((48, 64), 70000, np.int32)), {}, "16-bit"),
    ],
)
def test_images_that_cannot_be_right_are_refused(processor, image, options, message):
    with pytest.raises(ValueError, match=message):
        process(processor, image, **options)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.array([["cat"]]), "`segmentation_maps` must be of integers or floats of at most 64 bits, got <U3"),
        (torch.eye(4).to_sparse(), r"`segmentation_maps` must be dense tensors with values, got torch\.float32"),
        ("masks.png", "`segmentation_maps` must be PIL images, numpy arrays or torch tensors, got str"),
    ],
)
def test_label_maps_that_cannot_be_right_are_named_as_such(maps, message):
    with pytest.raises(ValueError, match=message):
        read_label_maps(maps)
