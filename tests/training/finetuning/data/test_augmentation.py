"""Boxes, masks and depth follow every change of geometry, and evaluation sees what the processor makes."""

import pytest
import torch
from tiny_tuning import tuning_settings
from torchvision import tv_tensors

from modeling_radio.image_processing_radio import RadioImageProcessor
from training.finetuning.data import build_transform


SIZE = (32, 48)


def marked_sample(top=8, left=20, height=20, width=30):
    """An image that is red inside one rectangle and blue elsewhere, with that rectangle as box and mask."""
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[2] = 255
    image[0, top : top + height, left : left + width] = 255
    image[2, top : top + height, left : left + width] = 0
    box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
    return {
        "image": tv_tensors.Image(image),
        "mask": tv_tensors.Mask((image[0] > 0).long()),
        "boxes": tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(64, 96)),
        "labels": torch.tensor([1]),
    }


@pytest.mark.parametrize("seed", range(20))
def test_masks_follow_the_image(seed):
    sample = marked_sample()
    del sample["boxes"], sample["labels"]
    torch.manual_seed(seed)
    out = build_transform(tuning_settings("semantic-segmentation", color_jitter=0.0), SIZE, is_training=True)(sample)
    assert out["image"].shape == (3, *SIZE)
    assert out["mask"].shape == SIZE
    red = out["image"][0] > 0.5
    # Bicubic and nearest resampling may differ along the rectangle's edges, nowhere else.
    assert (red != out["mask"].bool()).float().mean() < 0.06
    assert set(out["mask"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("seed", range(20))
def test_boxes_follow_the_image(seed):
    sample = marked_sample()
    del sample["mask"]
    torch.manual_seed(seed)
    out = build_transform(tuning_settings("object-detection", color_jitter=0.0), SIZE, is_training=True)(sample)
    assert out["boxes"].canvas_size == SIZE
    assert len(out["boxes"]) == len(out["labels"])
    if not len(out["boxes"]):
        return  # cropped away, which the crop allows
    rows, cols = torch.nonzero(out["image"][0] > 0.5, as_tuple=True)
    seen = torch.stack([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]).float()
    assert (seen - out["boxes"][0].as_subclass(torch.Tensor)).abs().max() <= 1.5


def test_flip_is_exact():
    sample = marked_sample()
    sample["masks"] = tv_tensors.Mask(sample.pop("mask")[None])
    options = {"crop_area_min": 1.0, "color_jitter": 0.0, "flip_probability": 1.0}
    out = build_transform(tuning_settings("object-detection", **options), (64, 96), is_training=True)(sample)
    assert out["boxes"].tolist() == [[96 - 50, 8, 96 - 20, 28]]
    torch.testing.assert_close(out["masks"][0].bool(), out["image"][0] == 1)


def test_cut_boxes_are_clipped_and_vanished_ones_leave_with_their_labels():
    sample = marked_sample()
    del sample["mask"]
    boxes = torch.tensor([[-10, -5, 30, 40], [10, 10, 10.5, 60]], dtype=torch.float32)
    sample |= {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(64, 96)),
        "labels": torch.tensor([1, 2]),
    }
    out = build_transform(tuning_settings("object-detection"), (64, 96), is_training=False)(sample)
    assert out["boxes"].tolist() == [[0, 0, 30, 40]]
    assert out["labels"].tolist() == [1]


@pytest.mark.parametrize("seed", range(5))
def test_images_without_boxes_pass(seed):
    torch.manual_seed(seed)
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(64, 96))
    image = marked_sample()["image"]
    sample = {"image": image, "boxes": boxes, "labels": torch.zeros(0, dtype=torch.long)}
    out = build_transform(tuning_settings("object-detection"), SIZE, is_training=True)(sample)
    assert out["boxes"].shape == (0, 4)
    assert out["image"].shape == (3, *SIZE)


def test_depth_keeps_its_values_and_is_not_cropped():
    depth = torch.rand(64, 96) + 1
    sample = {"image": marked_sample()["image"], "depth": tv_tensors.Mask(depth)}
    options = {"flip_probability": 0.0, "crop_area_min": 0.1}
    out = build_transform(tuning_settings("depth-estimation", **options), (32, 48), is_training=True)(sample)
    assert out["depth"].dtype == torch.float32
    assert set(out["depth"].flatten().tolist()) <= set(depth.flatten().tolist())  # no mean of two depths
    corners = out["depth"][[0, 0, -1, -1], [0, -1, 0, -1]]
    for corner, block in zip(corners, (depth[:2, :2], depth[:2, -2:], depth[-2:, :2], depth[-2:, -2:]), strict=True):
        assert corner in block


def test_evaluation_equals_the_processor():
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    transform = build_transform(tuning_settings(), SIZE, is_training=False)
    out = transform({"image": tv_tensors.Image(image)})
    processor = RadioImageProcessor(size={"height": SIZE[0], "width": SIZE[1]})
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(out["image"].as_subclass(torch.Tensor), expected, atol=1e-6, rtol=0)
