"""The image processor: what it accepts, sizes it chooses, how it joins images and undoes its geometry."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_radio import RadioConfig
from modeling_radio.image_processing_radio import RadioImageProcessor


def make_pixels(height=48, width=64, seed=0):
    """A smooth random RGB picture, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def processor():
    return RadioImageProcessor(size={"max_pixels": 256 * 256}, max_img_size=256)


def process(processor, images, **options):
    return processor(images, return_tensors="pt", **options)["pixel_values"]


# What it accepts


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
    torch.testing.assert_close(
        process(processor, str(tmp_path / "picture.png")), process(processor, pixels), atol=0, rtol=0
    )


@pytest.mark.parametrize("mode", ["L", "1", "I;16", "I", "F"])
def test_grey_images_become_three_equal_channels(processor, mode):
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


def test_grey_arrays_need_no_channel_axis(processor):
    grey = make_pixels()[..., 0]
    expected = process(processor, Image.fromarray(grey))
    assert torch.equal(process(processor, grey), expected)
    assert torch.equal(process(processor, [grey, torch.from_numpy(grey)]), expected.expand(2, -1, -1, -1))


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
        (make_pixels() / 32 - 4, {}, "do not normalise"),
        (make_pixels() / 2, {"do_rescale": False}, r"must lie in \[0, 1\]"),
        (make_pixels(), {"do_rescale": False}, "leave it True"),
        (np.full((48, 64, 3), np.nan), {}, "must lie in"),
        (make_pixels().astype(np.int32) * 10, {}, "uint16"),
        (make_pixels() > 99, {}, "multiplied by 255"),
        (np.zeros((48, 64, 2), np.uint8), {}, "1, 3 or 4 channels"),
        (np.zeros((0, 64, 3), np.uint8), {}, "shape"),
        ([], {}, "empty"),
        (Image.fromarray(np.full((48, 64), 70000, np.int32)), {}, "16-bit"),
    ],
)
def test_images_that_cannot_be_right_are_refused(processor, image, options, message):
    with pytest.raises(ValueError, match=message):
        process(processor, image, **options)


def test_normalising_is_refused_where_it_is_asked_for(processor):
    with pytest.raises(ValueError, match="RadioModel normalises inside"):
        process(processor, make_pixels(), do_normalize=True)
    with pytest.raises(ValueError, match="RadioModel normalises inside"):
        RadioImageProcessor(do_normalize=True)


def test_options_without_meaning_here_are_refused(processor):
    with pytest.raises(ValueError, match="do_center_crop"):
        process(processor, make_pixels(), do_center_crop=True, crop_size=32)
    with pytest.raises(ValueError, match="channels_first"):
        process(processor, make_pixels(), data_format="channels_last")
    with pytest.raises(TypeError, match="do_resise"):
        process(processor, make_pixels(), do_resise=False)
    with pytest.raises(ValueError, match="choose one"):
        process(processor, make_pixels(), do_pad=True, do_pack=True)
    with pytest.raises(ValueError, match="`size_divisor` must be a multiple of `patch_size`"):
        RadioImageProcessor(patch_size=16, size_divisor=24)


# The sizes it chooses


@pytest.mark.parametrize(
    ("image_size", "size", "expected"),
    [
        ((480, 640), {"shortest_edge": 256}, (256, 336)),
        ((480, 640), 256, (256, 336)),
        ((640, 480), {"shortest_edge": 256}, (336, 256)),
        ((480, 640), {"longest_edge": 512}, (384, 512)),
        ((480, 640), {"longest_edge": 500}, (368, 496)),
        ((100, 1000), {"shortest_edge": 256, "longest_edge": 512}, (48, 512)),
        ((480, 640), {"height": 224, "width": 256}, (224, 256)),
        ((480, 640), (224, 256), (224, 256)),
        ((481, 629), {"max_pixels": 2048 * 2048}, (480, 624)),
        ((3000, 4000), {"max_pixels": 512 * 512}, (432, 576)),
        ((30, 40), {"min_pixels": 224 * 224}, (192, 256)),
        ((480, 640), {"shortest_edge": 1024, "max_pixels": 512 * 512}, (432, 576)),
        ((5, 5), {"max_pixels": 2048 * 2048}, (16, 16)),
        ((1, 100000), {"shortest_edge": 512}, (16, 2048)),
        ((1, 100000), {"max_pixels": 16 * 160}, (16, 160)),
        ((5000, 6000), {"longest_edge": 6000}, (1712, 2048)),
    ],
)
def test_sizes(image_size, size, expected):
    processor = RadioImageProcessor(size=size)
    assert processor.get_output_size(*image_size) == expected
    assert RadioImageProcessor().get_output_size(*image_size, size=size) == expected


def test_bounds_hold_for_any_image():
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 5000, (200, 2)).tolist():
        rows, cols = RadioImageProcessor().get_output_size(height, width, size={"max_pixels": 300 * 300})
        assert rows % 16 == 0
        assert cols % 16 == 0
        assert rows * cols <= 300 * 300
        rows, cols = RadioImageProcessor(size_divisor=128).get_output_size(height, width)
        assert rows % 128 == 0
        assert cols % 128 == 0
        assert max(rows, cols) <= 2048


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 200, "width": 250}, "the nearest is 208 x 256"),
        ({"height": 224, "width": 4096}, "the nearest is 224 x 2048"),
        ({"height": 224}, "both"),
        ({"shortest_side": 224}, "shortest_side"),
        ({"shortest_edge": 0}, "positive"),
        ({"longest_edge": 8}, "no room"),
        ({"max_pixels": 100}, "no room"),
        ((1, 2, 3), "must be an integer"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        RadioImageProcessor().get_output_size(480, 640, size=size)


def test_without_resizing_a_size_off_the_grid_is_refused(processor):
    assert process(processor, make_pixels(), do_resize=False).shape == (1, 3, 48, 64)
    with pytest.raises(ValueError, match="got 50 x 64; the nearest is 48 x 64"):
        process(processor, make_pixels(50), do_resize=False)


def test_resizing_is_antialiased_bicubic(processor):
    pixels = make_pixels(200, 240)
    values = process(processor, pixels, size=(96, 112))[0]
    expected = np.array(Image.fromarray(pixels).resize((112, 96), Image.Resampling.BICUBIC))
    # PIL and torchvision round the same filter differently by at most one level.
    torch.testing.assert_close(values, torch.from_numpy(expected).permute(2, 0, 1) / 255, atol=1.1 / 255, rtol=0)


def test_float_pixels_stay_in_range_when_the_filter_overshoots(processor):
    checker = np.kron(np.indices((6, 8)).sum(0) % 2, np.ones((8, 8)))
    values = process(processor, checker, do_rescale=False, size=(144, 160))
    assert values.min() == 0
    assert values.max() == 1


# How it joins images


def test_images_of_one_size_become_one_batch(processor):
    first, second = make_pixels(seed=1), make_pixels(seed=2)
    batch = process(processor, [first, second])
    assert torch.equal(batch, torch.cat([process(processor, first), process(processor, second)]))


def test_images_of_different_sizes_need_a_choice(processor):
    images = [make_pixels(48, 64), make_pixels(64, 48)]
    with pytest.raises(ValueError, match=r"2 different sizes .*do_pad=True.*do_pack=True"):
        process(processor, images)
    shapes = [tuple(values.shape) for values in processor(images)["pixel_values"]]
    assert shapes == [(3, 48, 64), (3, 64, 48)]


def test_padding_keeps_each_image_at_the_top_left_and_says_where(processor):
    images = [make_pixels(48, 64), make_pixels(80, 32)]
    inputs = processor(images, do_pad=True, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 80, 64)
    for image, values, mask in zip(images, inputs["pixel_values"], inputs["pixel_mask"], strict=True):
        height, width = image.shape[:2]
        assert torch.equal(values[:, :height, :width], process(processor, image)[0])
        assert mask.sum() == height * width
        assert mask[:height, :width].all()
        assert (values[:, mask == 0] == 0.5).all()


def test_padding_to_a_given_size(processor):
    inputs = processor(make_pixels(), do_pad=True, pad_size={"height": 96, "width": 96}, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    with pytest.raises(ValueError, match="at least 48 and 64"):
        processor(make_pixels(), do_pad=True, pad_size={"height": 32, "width": 96}, return_tensors="pt")
    with pytest.raises(ValueError, match="the nearest is 96 x 96"):
        processor(make_pixels(), do_pad=True, pad_size={"height": 96, "width": 100}, return_tensors="pt")


def test_packing_lays_patches_out_channel_major(processor):
    images = [make_pixels(48, 64), make_pixels(80, 32)]
    inputs = processor(images, do_pack=True, return_tensors="pt")
    assert inputs["image_grid_hw"].tolist() == [[3, 4], [5, 2]]
    assert inputs["pixel_values"].shape == (12 + 10, 3 * 16 * 16)
    patch = process(processor, images[1])[0, :, 32:48, 16:32]  # row 2, column 1 of the second image
    assert torch.equal(inputs["pixel_values"][12 + 2 * 2 + 1], patch.flatten())


@pytest.mark.parametrize("options", [{}, {"do_pad": True}, {"do_pack": True}])
def test_numpy_output(processor, options):
    inputs = processor([make_pixels(), make_pixels(seed=1)], return_tensors="np", **options)
    assert all(isinstance(values, np.ndarray) for values in inputs.values())


# How it undoes its geometry


def plane(height, width):
    """A map linear in the position, (1, 2, height, width): x and y of pixel centres in [0, 1]."""
    y, x = ((torch.arange(n) + 0.5) / n for n in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])[None]


def test_feature_maps_return_to_the_image(processor):
    (restored,) = processor.post_process_features(plane(6, 8), [(90, 130)])
    assert restored.shape == (2, 90, 130)
    inner = (
        slice(None),
        slice(10, -10),
        slice(10, -10),
    )  # outermost half patches stay constant
    torch.testing.assert_close(restored[inner], plane(90, 130)[0][inner], atol=1e-5, rtol=0)


def test_padding_is_cut_off_feature_maps(processor):
    originals = [(48, 64), (80, 32)]
    inputs = processor([make_pixels(*size) for size in originals], do_pad=True, return_tensors="pt")
    maps = torch.full((2, 2, 5, 4), 99.0)
    maps[:1, :, :3, :4] = plane(3, 4)
    maps[1:, :, :5, :2] = plane(5, 2)
    restored = processor.post_process_features(maps, originals, pixel_mask=inputs["pixel_mask"])
    assert [tuple(feature_map.shape) for feature_map in restored] == [(2, 48, 64), (2, 80, 32)]
    assert all(feature_map.max() < 1 for feature_map in restored)


def test_packed_features_return_to_the_image(processor):
    grids = torch.tensor([[3, 4], [5, 2]])
    packed = torch.cat([plane(*grid)[0].flatten(1).T for grid in grids.tolist()])
    restored = processor.post_process_features(packed, [(48, 64), (80, 32)], image_grid_hw=grids)
    (expected,) = processor.post_process_features(plane(5, 2), [(80, 32)])
    torch.testing.assert_close(restored[1], expected)


def test_semantic_segmentation_labels_each_pixel(processor):
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 1, :, :2] = 1
    logits[:, 2, :, 2:] = 1
    outputs = SimpleNamespace(logits=logits)
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(20, 40)])
    assert labels.shape == (20, 40)
    assert (labels[:, :20] == 1).all()
    assert (labels[:, 20:] == 2).all()
    assert processor.post_process_semantic_segmentation(outputs)[0].shape == (4, 4)


def test_masks_return_to_the_image(processor):
    logits = torch.full((1, 1, 4, 4), -1.0)
    logits[..., :2] = 1
    (mask,) = processor.post_process_masks(logits, [(20, 40)])
    assert mask.shape == (1, 20, 40)
    assert mask.dtype == torch.bool
    assert mask[..., :20].all()
    assert not mask[..., 20:].any()


def test_boxes_return_to_the_image_and_stay_inside(processor):
    original = (300, 500)
    resized = processor.get_output_size(*original)
    box = torch.tensor([[0.1, 0.2, 0.7, 1.1]])
    in_pixels = [box * torch.tensor([resized[1], resized[0]] * 2)]
    (restored,) = processor.post_process_boxes(in_pixels, [original], [resized])
    torch.testing.assert_close(restored, torch.tensor([[50.0, 60.0, 350.0, 300.0]]))


def test_target_sizes_must_match_the_batch(processor):
    with pytest.raises(ValueError, match="each of the 1 images, got 2"):
        processor.post_process_features(plane(3, 4), [(48, 64), (48, 64)])


# As a part of a checkpoint


def test_saved_and_reloaded(tmp_path):
    processor = RadioImageProcessor(size={"longest_edge": 96, "max_pixels": 6400}, patch_size=8, size_divisor=16)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoImageProcessor": "image_processing_radio.RadioImageProcessor"}
    assert (tmp_path / "image_processing_radio.py").exists()
    reloaded = RadioImageProcessor.from_pretrained(tmp_path)
    assert reloaded.to_dict() == {**processor.to_dict(), "auto_map": saved["auto_map"]}
    image = make_pixels(100, 70)
    assert torch.equal(process(reloaded, image), process(processor, image))


def test_processor_for_a_model():
    config = RadioConfig.from_preset("radio-test", patch_size=8)
    processor = RadioImageProcessor.from_model_config(config, resample=Image.Resampling.BILINEAR)
    assert process(processor, make_pixels()).shape == (1, 3, 64, 88)
    assert processor.max_img_size == config.max_img_size
    assert processor.resample == Image.Resampling.BILINEAR
