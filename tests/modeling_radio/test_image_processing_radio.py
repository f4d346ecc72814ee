"""The image processor: its options, how it resizes and joins images, and its life in a checkpoint."""

import base64
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processor_cases import make_pixels, process
from refusals import refused
from transformers import CLIPImageProcessor
from transformers.models.radio.modeling_radio import RadioModel as NativeRadioModel

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.image_processing_radio import read_label_maps, to_pixels


@pytest.fixture
def processor():
    return RadioImageProcessor(size={"max_pixels": 256 * 256}, max_img_size=256)


# Its options


# How it resizes


def test_without_resizing_a_size_off_the_grid_is_refused(processor):
    assert process(processor, make_pixels(), do_resize=False).shape == (1, 3, 48, 64)
    with pytest.raises(ValueError, match=r"got 50 x 64\. The nearest valid size is 48 x 64"):
        process(processor, make_pixels(50), do_resize=False)


def test_resizing_is_antialiased_bicubic(processor):
    pixels = make_pixels(200, 240)
    values = process(processor, pixels, size=(96, 112))[0]
    expected = np.array(Image.fromarray(pixels).resize((112, 96), Image.Resampling.BICUBIC))
    # PIL and torchvision round the same filter differently by at most one level.
    torch.testing.assert_close(values, torch.from_numpy(expected).permute(2, 0, 1) / 255, atol=1.1 / 255, rtol=0)


def count_resizes(processor, monkeypatch):
    """Return a list that grows by the shape of each batch that the processor resizes."""
    shapes = []
    resize = processor.resize

    def count(images, *arguments, **options):
        shapes.append(tuple(images.shape))
        return resize(images, *arguments, **options)

    monkeypatch.setattr(processor, "resize", count)
    return shapes


SHAPES = [(48, 64), (80, 32), (48, 64), (64, 48), (80, 32), (48, 64), (96, 96)]


@pytest.mark.parametrize("layout", ["pil", "channels-first", "float"])
@pytest.mark.parametrize("size", [(96, 96), {"shortest_edge": 64}], ids=["one-size", "many-sizes"])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_images_of_one_shape_are_resized_together_with_the_same_pixels(processor, monkeypatch, layout, size, resample):
    pictures = [make_pixels(*shape, seed=index) for index, shape in enumerate(SHAPES)]
    convert = {
        "pil": Image.fromarray,
        "channels-first": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
        "float": lambda pixels: pixels.astype(np.float32),
    }[layout]
    images = [convert(pixels) for pixels in pictures]
    options = {"size": size, "resample": resample}
    alone = [process(processor, image, **options)[0] for image in images]
    resized = count_resizes(processor, monkeypatch)
    together = processor(images, disable_grouping=False, **options)["pixel_values"]
    changed = {shape for shape, pixels in zip(SHAPES, alone, strict=True) if pixels.shape[-2:] != shape}
    assert len(resized) == len(changed)
    assert {shape[-2:]: shape[0] for shape in resized} == {shape: SHAPES.count(shape) for shape in changed}
    assert len(together) == len(alone)
    assert all(torch.equal(first, second) for first, second in zip(together, alone, strict=True))


# How it joins images


@pytest.mark.parametrize("options", [{}, {"do_pad": True}, {"do_pack": True}])
def test_images_of_different_channels_fit_no_batch(options):
    images = [Image.new(mode, (32, 32)) for mode in ("L", "RGBA")]
    refused("images", lambda: RadioImageProcessor(do_convert_rgb=False)(images, return_tensors="pt", **options))


def test_images_of_different_sizes_need_a_choice(processor):
    images = [make_pixels(48, 64), make_pixels(64, 48)]
    refused("images", lambda: process(processor, images))
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


def test_padding_goes_on_to_the_next_patch(processor):
    inputs = processor(make_pixels(), do_pad=True, pad_size={"height": 81, "width": 100}, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 112)
    assert inputs["pixel_mask"].shape == (1, 96, 112)
    assert inputs["pixel_mask"].sum() == inputs["pixel_mask"][:, :48, :64].sum() == 48 * 64
    inputs = processor(make_pixels(), do_pad=True, pad_size=81, size_divisor=32, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    with pytest.raises(ValueError, match="`pad_size`"):
        processor(make_pixels(), do_pad=True, pad_size=processor.max_img_size + 1, return_tensors="pt")


def test_packing_lays_patches_out_channel_major(processor):
    images = [make_pixels(48, 64), make_pixels(80, 32)]
    inputs = processor(images, do_pack=True, return_tensors="pt")
    assert inputs["image_grid_hw"].tolist() == [[3, 4], [5, 2]]
    assert inputs["pixel_values"].shape == (12 + 10, 3 * 16 * 16)
    patch = process(processor, images[1])[0, :, 32:48, 16:32]  # row 2, column 1 of the second image
    assert torch.equal(inputs["pixel_values"][12 + 2 * 2 + 1], patch.flatten())


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


def test_native_transformers_sees_the_same_pixels_by_another_processor(tmp_path):
    """As README says: without trust there is no processor of ours, and CLIP's with an exact size does."""
    torch.manual_seed(0)
    model = RadioModel(RadioConfig.from_preset("radio-test")).eval()
    model.save_pretrained(tmp_path)
    processor = RadioImageProcessor.from_model_config(model.config, size={"height": 64, "width": 96})
    processor.save_pretrained(tmp_path)
    other = CLIPImageProcessor.from_pretrained(tmp_path)
    image = Image.fromarray(make_pixels(130, 200))
    inputs, expected = other(image, return_tensors="pt"), processor(image, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    with torch.no_grad():
        found = NativeRadioModel.from_pretrained(tmp_path).eval()(**inputs).summary
        torch.testing.assert_close(found, model(**expected).summary, rtol=0, atol=1e-5)


def test_processor_for_a_model():
    config = RadioConfig.from_preset("radio-test", patch_size=8)
    processor = RadioImageProcessor.from_model_config(config, resample=Image.Resampling.BILINEAR)
    assert process(processor, make_pixels()).shape == (1, 3, 64, 88)
    assert processor.max_img_size == config.max_img_size
    assert processor.resample == Image.Resampling.BILINEAR


# What the processor resizes to


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


def test_the_size_that_a_processor_holds_is_taken_again():
    held = RadioImageProcessor(size={"height": 32, "width": 48})
    image = torch.zeros(3, 50, 70, dtype=torch.uint8)
    for processor in (RadioImageProcessor(), RadioImageProcessor(size=held.size)):
        assert processor(image, size=held.size, return_tensors="pt").pixel_values.shape == (1, 3, 32, 48)


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
    ("size", "nearest"),
    [
        ({"height": 200, "width": 250}, r" .* 192 x 256"),
        ({"height": 224, "width": 4096}, r" .* 224 x 2048"),
        *((size, "") for size in ({"height": 224}, {"shortest_side": 224}, {"shortest_edge": 0})),
        *((size, "") for size in ({"longest_edge": 8}, {"max_pixels": 100}, (1, 2, 3))),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(size, nearest):
    with pytest.raises(ValueError, match=f"`size`{nearest}"):
        RadioImageProcessor().get_output_size(480, 640, size=size)


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


def test_paths_are_read(processor, tmp_path):
    pixels = make_pixels()
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    path = tmp_path / "picture.png"
    expected = process(processor, pixels)
    assert torch.equal(process(processor, str(path)), expected)
    assert torch.equal(process(processor, path), expected)
    assert torch.equal(process(processor, [path, [pixels]]), expected.expand(2, -1, -1, -1))


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


NO_IMAGES = [
    *(make_pixels() / 32 - 4, np.full((48, 64, 3), np.nan), make_pixels().astype(np.int32) * 10, make_pixels() > 99),
    *(np.zeros((48, 64, 2), np.uint8), np.zeros((0, 64, 3), np.uint8), [], 5, {"image": 1}, np.array([["a"]])),
    *(np.zeros((48, 64, 3), object), np.zeros((48, 64, 3), np.longdouble)),
    *(torch.zeros(3, 48, 64, device="meta"), torch.zeros(3, 48, 64).to_sparse()),
    *(torch.sparse_coo_tensor(size=(2, 3, 8, 8), dtype=torch.uint16), Image.new("RGB", (0, 48))),
    *(Image.new("La", (64, 48)), Image.fromarray(np.full((48, 64), 70000, np.int32))),
]


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        *(("images", image, {}) for image in NO_IMAGES),
        ("images", make_pixels() / 2, {"do_rescale": False}),
        ("do_rescale", make_pixels(), {"do_rescale": False}),
        ("do_rescale", make_pixels() / 255, {}),
    ],
)
def test_images_that_cannot_be_right_are_refused(processor, name, image, options):
    refused(name, lambda: process(processor, image, **options))


@pytest.mark.parametrize("maps", [np.array([["cat"]]), torch.eye(4).to_sparse(), "masks.png"])
def test_label_maps_that_cannot_be_right_are_named_as_such(maps):
    refused("segmentation_maps", lambda: read_label_maps(maps))


RESCALED = {"do_rescale": True, "rescale_factor": 1 / 255}


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (torch.tensor([-1.0, 51.0, 256.0]), RESCALED),
        (torch.tensor([-0.1, 0.2, 1.1]), {"do_rescale": False, "rescale_factor": 1 / 255}),
        (torch.tensor([0, 20, 101], dtype=torch.uint8), {"do_rescale": True, "rescale_factor": 1 / 100}),
    ],
)
def test_overshoot_is_cut_and_the_input_kept(values: torch.Tensor, options: dict[str, object]) -> None:
    before = values.clone()
    assert to_pixels(values, options) == pytest.approx(torch.tensor([0, 0.2, 1]))
    assert torch.equal(values, before)


def test_an_image_of_the_right_size_is_a_copy() -> None:
    image = torch.rand(3, 32, 32)
    before = image.clone()
    processor = RadioImageProcessor(do_resize=False, do_rescale=False)
    processor(image, return_tensors="pt")["pixel_values"].zero_()
    processor(image, return_tensors=None)["pixel_values"][0].zero_()
    assert torch.equal(image, before)


WRONG = {
    "size": [{"height": 64}, {"max_height": 64}, "large", 64.0, True, 2**70],
    "patch_size": [0, 16.0, True, None],
    "size_divisor": [-16, "16", 24],
    "max_img_size": [math.inf, 8, None],
    "rescale_factor": [0, -1 / 255, math.nan, 10**400, "1/255", 1e-300, None],
    "resample": [99, "bicubic", Image.Resampling.HAMMING],
    "image_mean": [[0.5, 0.5, 0.5], [0.0, math.nan, 0.0]],
    "image_std": [0.0, "1"],
    "pad_size": [{"height": 64}, {"shortest_edge": 64}, -64, 1.5],
    "crop_size": [-3],
    "data_format": ["channels_last", 3],
    "input_data_format": ["last"],
    "image_seq_length": [-1, "x"],
    "default_to_square": ["x"],
    "return_tensors": ["tf"],
    "device": ["gpu", 1.5],
    "do_normalize": [True],
    "do_center_crop": [True],
    "do_resize": [1],
    "do_rescale": ["yes"],
    "do_pad": [0.0],
    "do_pack": ["no"],
    "do_convert_rgb": [3],
    "do_reduce_labels": ["x"],
    "disable_grouping": ["x"],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_refused_by_name(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"^`{name}`") as at_call:
            RadioImageProcessor()(make_pixels(), **{name: value})
        if value is None:
            continue  # a processor that is built takes the default then
        with pytest.raises(ValueError, match=rf"^`{name}`") as at_construction:
            RadioImageProcessor(**{name: value})
        assert str(at_call.value) == str(at_construction.value)


def test_misspelt_settings_are_refused_and_what_transformers_writes_is_not(tmp_path):
    with pytest.raises(ValueError, match="`do_resise`"):
        RadioImageProcessor(do_resise=False)
    processor = RadioImageProcessor(processor_class="AutoProcessor", something_of_tomorrow=1)
    processor.save_pretrained(tmp_path)
    assert RadioImageProcessor.from_pretrained(tmp_path).something_of_tomorrow == 1


@pytest.mark.parametrize("value", [0, (0, 0, 0), [0.0, 0.0, 0.0], [0.0] * 4])
def test_normalization_that_changes_nothing_may_be_given(value):
    inputs = RadioImageProcessor()(make_pixels(), image_mean=value, image_std=[1, 1, 1])
    assert inputs["pixel_values"][0].max() <= 1


def test_the_longest_side_is_the_models_and_not_that_of_its_table():
    config = RadioConfig.from_preset("radio-test", max_resolution=128)
    assert config.max_img_size != 128
    assert RadioImageProcessor.from_model_config(config).max_img_size == 128
