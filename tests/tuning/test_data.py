"""Augmentation, and how often images of rare classes are shown."""

import pytest
import torch
from tiny_tuning import tuning_settings
from torchvision import tv_tensors

from modeling_radio.data.labeled.images import BOXES, DEPTH, LABELS, MASKS
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.tuning.data import (
    AUGMENTATIONS,
    Augmentation,
    build_transform,
    choose_weights,
    draw_images,
    epoch_length,
    image_weights,
)


SIZE = (32, 48)


def marked_sample(**others):
    """An image that is red inside one rectangle and blue elsewhere, and other entries."""
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[2] = 255
    image[0, 8:28, 20:50], image[2, 8:28, 20:50] = 255, 0
    return {"image": tv_tensors.Image(image), **others}


def mask_of(sample):
    return tv_tensors.Mask((sample["image"][0] > 0).long())


def boxes(*corners):
    return tv_tensors.BoundingBoxes(torch.tensor(corners).reshape(-1, 4), format="XYXY", canvas_size=(64, 96))


RECTANGLE = (20.0, 8.0, 50.0, 28.0)


@pytest.mark.parametrize("seed", range(6))
def test_masks_and_boxes_follow_the_image(seed):
    sample = marked_sample()
    torch.manual_seed(seed)
    transform = build_transform(tuning_settings("semantic-segmentation"), MASKS, SIZE, is_training=True)
    out = transform({**sample, "mask": mask_of(sample)})
    assert out["image"].shape == (3, *SIZE)
    red = out["image"][0] > 0.5
    # Bicubic and nearest resampling may differ along the rectangle's edges, nowhere else.
    assert (red != out["mask"].bool()).float().mean() < 0.06
    assert set(out["mask"].unique().tolist()) <= {0, 1}
    transform = build_transform(tuning_settings("object-detection"), BOXES, SIZE, is_training=True)
    out = transform({**sample, "boxes": boxes(RECTANGLE), "labels": torch.tensor([1])})
    assert out["boxes"].canvas_size == SIZE
    assert len(out["boxes"]) == len(out["labels"])
    if len(out["boxes"]):  # else cropped away, which the crop allows
        rows, cols = torch.nonzero(out["image"][0] > 0.5, as_tuple=True)
        found = torch.stack([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]).float()
        assert (found - out["boxes"][0].as_subclass(torch.Tensor)).abs().max() <= 1.5
    out = transform(marked_sample(boxes=boxes(), labels=torch.zeros(0, dtype=torch.long)))
    assert (out["boxes"].shape, out["image"].shape) == ((0, 4), (3, *SIZE))


def test_a_flip_is_exact(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "photographs", Augmentation(flip_probability=1.0))
    sample = marked_sample(boxes=boxes(RECTANGLE), labels=torch.tensor([1]))
    sample["masks"] = tv_tensors.Mask(mask_of(sample)[None])
    out = build_transform(tuning_settings("object-detection"), BOXES, (64, 96), is_training=True)(sample)
    assert out["boxes"].tolist() == [[96 - 50, 8, 96 - 20, 28]]
    torch.testing.assert_close(out["masks"][0].bool(), out["image"][0] == 1)


def test_cut_boxes_are_clipped_and_tiny_ones_dropped_with_their_labels():
    sample = marked_sample(
        boxes=boxes((-10.0, -5.0, 30.0, 40.0), (10.0, 10.0, 10.5, 60.0)), labels=torch.tensor([1, 2])
    )
    out = build_transform(tuning_settings("object-detection"), BOXES, (64, 96), is_training=False)(sample)
    assert out["boxes"].tolist() == [[0, 0, 30, 40]]
    assert out["labels"].tolist() == [1]


def test_depth_keeps_its_values_and_is_not_cropped(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "photographs", Augmentation(crop_area_min=0.1))
    depth = torch.rand(64, 96) + 1
    transform = build_transform(tuning_settings("depth-estimation"), DEPTH, SIZE, is_training=True)
    out = transform(marked_sample(depth=tv_tensors.Mask(depth)))
    assert out["depth"].dtype == torch.float32
    assert set(out["depth"].flatten().tolist()) <= set(depth.flatten().tolist())  # no mean of two depths
    corners = out["depth"][[0, 0, -1, -1], [0, -1, 0, -1]]
    for corner, block in zip(corners, (depth[:2, :2], depth[:2, -2:], depth[-2:, :2], depth[-2:, -2:]), strict=True):
        assert corner in block


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_only_augmented_images_change(name):
    transform = build_transform(tuning_settings(augment=name), LABELS, SIZE, is_training=True)
    image = marked_sample()["image"]
    drawn = [transform({"image": image})["image"] for _ in range(4)]
    assert all(torch.equal(drawn[0], each) for each in drawn[1:]) == (name == "none")


def test_light_changes_mirror_nothing():
    image = tv_tensors.Image(torch.arange(96, dtype=torch.uint8).expand(3, 64, 96))  # lighter to the right
    transform = build_transform(tuning_settings(augment="light"), LABELS, SIZE, is_training=True)
    drawn = [transform({"image": image})["image"].mean(0) for _ in range(20)]
    assert all(each[:, 0].mean() < each[:, -1].mean() for each in drawn)


def test_evaluation_equals_the_processor():
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    out = build_transform(tuning_settings(), LABELS, SIZE, is_training=False)({"image": tv_tensors.Image(image)})
    processor = RadioImageProcessor(size={"height": SIZE[0], "width": SIZE[1]})
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(out["image"].as_subclass(torch.Tensor), expected, atol=1e-6, rtol=0)


def test_weights_of_images_and_classes(monkeypatch):
    monkeypatch.setattr("modeling_radio.tuning.data.REPEAT_THRESHOLD", 0.12)
    weights = image_weights("balanced", [[0]] * 8 + [[1]] * 2, 3)
    assert weights.tolist() == [0.625] * 8 + [2.5] * 2  # both sum to 5
    drawn = draw_images(weights, torch.Generator().manual_seed(0))
    assert len(drawn) == 10
    assert 4 <= (drawn >= 8).sum() <= 6  # each of the two images twice or three times
    with pytest.raises(ValueError, match="`sampler`"):
        image_weights("balanced", [[0], [0, 1]], 2)
    weights = image_weights("repeat-factor", [[0]] * 96 + [[0, 1]] * 3 + [[]], 2)
    assert weights.tolist() == pytest.approx([1.0] * 96 + [2.0] * 3 + [1.0])  # sqrt(0.12 / 0.03), as in LVIS
    assert epoch_length(weights) == 103
    counts = torch.tensor([30, 10, 0])
    assert choose_weights("balanced", ("a", "b", "c"), lambda: counts) == pytest.approx([40 / 60, 2.0, 1.0])
    assert choose_weights((1.0, 2.0), ("a", "b"), lambda: pytest.fail("nothing needs to be counted")) == [1.0, 2.0]


def test_draws_are_the_weights_on_average_and_otherwise_rounded():
    weights = torch.tensor([0.5, 1.0, 2.25, 0.25])
    counts = torch.stack(
        [draw_images(weights, torch.Generator().manual_seed(seed)).bincount(minlength=4) for seed in range(400)]
    )
    assert (counts >= weights.floor()).all()
    assert (counts <= weights.ceil()).all()
    torch.testing.assert_close(counts.double().mean(0), weights.double(), atol=0.1, rtol=0)


IN_PASS = 12
