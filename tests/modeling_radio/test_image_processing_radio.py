"""The image processor: its options, how it resizes and joins images, and its life in a checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from processor_cases import make_pixels, process
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)
from transformers.models.radio.modeling_radio import RadioModel as NativeRadioModel

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.image_processing_radio import RadioImageProcessor


@pytest.fixture
def processor():
    return RadioImageProcessor(size={"max_pixels": 256 * 256}, max_img_size=256)


# Its options


def test_normalizing_is_refused_where_it_is_asked_for(processor):
    with pytest.raises(ValueError, match="RadioModel normalizes inside"):
        process(processor, make_pixels(), do_normalize=True)
    with pytest.raises(ValueError, match="RadioModel normalizes inside"):
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


def test_float_pixels_stay_in_range_when_the_filter_overshoots(processor):
    checker = np.kron(np.indices((6, 8)).sum(0) % 2, np.ones((8, 8)))
    values = process(processor, checker, do_rescale=False, size=(144, 160))
    assert values.min() == 0
    assert values.max() == 1


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


def test_images_are_resized_alone_on_a_cpu_unless_asked(processor, monkeypatch):
    images = [make_pixels(seed=1), make_pixels(seed=2)]
    resized = count_resizes(processor, monkeypatch)
    alone = process(processor, images, size=96)
    assert len(resized) == 2
    assert torch.equal(process(processor, images, size=96, disable_grouping=False), alone)
    assert len(resized) == 3


def test_images_of_several_kinds_keep_the_rounding_of_their_own(processor):
    integers, deep = make_pixels(seed=1), make_pixels(seed=2).astype(np.uint16) * 257
    gray = make_pixels(seed=3)[..., 0]
    options = {"size": 96, "do_convert_rgb": False}
    together = processor([integers, deep, gray], disable_grouping=False, **options)["pixel_values"]
    alone = [process(processor, image, **options)[0] for image in (integers, deep, gray)]
    assert [len(pixels) for pixels in together] == [3, 3, 1]
    assert all(torch.equal(first, second) for first, second in zip(together, alone, strict=True))


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


def test_padding_goes_on_to_the_next_patch(processor):
    inputs = processor(make_pixels(), do_pad=True, pad_size={"height": 81, "width": 100}, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 112)
    assert inputs["pixel_mask"].shape == (1, 96, 112)
    assert inputs["pixel_mask"].sum() == inputs["pixel_mask"][:, :48, :64].sum() == 48 * 64
    inputs = processor(make_pixels(), do_pad=True, pad_size=81, size_divisor=32, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    with pytest.raises(ValueError, match=f"`pad_size` must have sides .* at most {processor.max_img_size} pixels"):
        processor(make_pixels(), do_pad=True, pad_size=processor.max_img_size + 1, return_tensors="pt")


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


@pytest.mark.parametrize(
    "processor_class",
    [CLIPImageProcessor, ViTImageProcessor, BitImageProcessor, SiglipImageProcessor],
)
@pytest.mark.parametrize("height", [768, 750])
def test_other_processors_show_the_model_the_whole_image(tmp_path, processor_class, height):
    """Without the settings that are of no use here, CLIP's would crop 224 pixels out of the middle."""
    RadioImageProcessor.from_model_config(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path)
    other = processor_class.from_pretrained(tmp_path)
    ramp = np.tile(np.linspace(0, 255, 1024), (height, 1)).astype(np.uint8)
    pixel_values = other(images=Image.fromarray(ramp).convert("RGB"), return_tensors="pt", do_resize=True)[
        "pixel_values"
    ]
    # The left and the right edge are there, in [0, 1] and not normalized.
    assert pixel_values[..., 0].max() < 0.01
    assert pixel_values[..., -1].min() > 0.99
    model = RadioModel(RadioConfig.from_preset("radio-test")).eval()
    if all(side % 16 == 0 for side in pixel_values.shape[-2:]):
        assert model(pixel_values).summary.isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"`pixel_values` must .* multiples of 16 .* The nearest valid size is"):
            model(pixel_values)


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
