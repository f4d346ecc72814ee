"""Masks are read, wrong ones are refused by name, and scores are known."""

import logging
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_tuning import build_task, mask_rows, picture

from training.finetuning.tasks.dense import SegmentationTask


def build(names=("a", "b", "c"), train=None, **options):
    return build_task(SegmentationTask, "semantic-segmentation", names, train, **options)


@pytest.fixture
def segmentation():
    return build(train=mask_rows([[0, 1]]))


def test_ids_of_masks_are_kept_and_255_ignored(segmentation):
    ids = np.array([[0, 1, 2, 255]] * 4, dtype=np.uint8)
    sample = segmentation.read({"image": picture(4, 4), "target": Image.fromarray(ids)}, "image 0")
    assert sample["mask"].tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((40, 48)), r"mask of image 7 has 40 x 48 pixels but its image 36 x 48 \(height x width\)"),
        (np.full((36, 48), 3), "mask of image 7 has the id 3, but there are 3 classes .ids 0 to 2; 255 is ignored"),
        (np.zeros((36, 48, 3)), "mask of image 7 has colors"),
    ],
)
def test_wrong_masks(segmentation, mask, message):
    with pytest.raises(ValueError, match=message):
        segmentation.read({"image": picture(), "target": Image.fromarray(mask.astype(np.uint8))}, "image 7")


def test_missing_mask(segmentation):
    with pytest.raises(ValueError, match="mask of image 7 is missing: give it one, or leave the image out"):
        segmentation.read({"image": picture(), "target": None}, "image 7")


def test_wrong_mask_is_named_by_its_file(segmentation, tmp_path):
    Image.fromarray(np.full((36, 48), 9, dtype=np.uint8)).save(tmp_path / "wrong.png")
    with Image.open(tmp_path / "wrong.png") as mask, pytest.raises(ValueError, match=r"image 7 \(.*wrong.png\) has"):
        segmentation.read({"image": picture(), "target": mask}, "image 7")


def test_classes_of_masks_are_counted_where_none_are_named(caplog):
    rows = mask_rows([[0, 255]], [[4, 1]], [[255, 255]])
    with caplog.at_level(logging.WARNING):
        task = build(names=(), train=rows)
    assert task.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert "data: 5 classes, of which no training mask has the ids 2, 3" in caplog.text


def test_a_stray_id_makes_no_classes():
    message = "have the ids 0, 1, 2, 254 alone, which would make 255 classes: correct .*, or give all `classes`"
    with pytest.raises(ValueError, match=message):
        build(names=(), train=mask_rows([[0, 1]], [[2, 254]]))
    task = build(names=("a", "b", "c"), train=mask_rows([[0, 1]], [[2, 254]]))
    with pytest.raises(ValueError, match="mask of training image 1 has the id 254, but there are 3 classes"):
        task.prepare(Mock())  # before the run


def test_colors_are_not_taken_for_class_ids():
    rows = mask_rows(np.full((4, 4, 3), 128))
    with pytest.raises(ValueError, match=r"mask of training image 0 has colors, shape \(4, 4, 3\)"):
        build(names=(), train=rows)


@pytest.mark.parametrize("names", [(), ("background", "foreground")])
@pytest.mark.parametrize(("mask", "ids"), [([[0, 255]], "0, 255"), ([[0, 0]], "0"), ([[255, 255]], "255")])
def test_masks_of_one_class(names, mask, ids):
    with pytest.raises(ValueError, match=rf"have the ids {ids} alone, and 255 is ignored.*1 \(not 255\)"):
        build(names=names, train=mask_rows(mask, mask))


def test_two_classes_may_be_in_different_masks():
    rows = mask_rows([[0, 0]], [[1, 1]])
    assert len(build(names=(), train=rows).class_names) == 2


def test_ignored_id_is_the_models(segmentation):
    assert segmentation.config_fields()["semantic_loss_ignore_index"] == 255
    options = {"config": {"semantic_loss_ignore_index": 0}, "class_weights": "balanced"}
    task = build(train=mask_rows([[0, 0, 1, 2]]), **options)
    fields = task.config_fields()
    assert fields["semantic_loss_ignore_index"] == 0
    assert fields["class_weights"] == pytest.approx([1.0, 1.0, 1.0])  # the two zeros are not counted
    score = task.build_score()
    score.update(torch.tensor([[1, 1, 1, 2]]), torch.tensor([[0, 0, 1, 2]]))
    assert score.compute()["mean_iou"] == 1
    with pytest.raises(ValueError, match=r"has the id 255, .* \(ids 0 to 2; 0 is ignored\)"):
        task.read({"image": picture(1, 2), "target": np.array([[0, 255]])}, "image 7")
    with pytest.raises(ValueError, match=r"semantic_loss_ignore_index` must be the id of a class, got 'no'"):
        build(config={"semantic_loss_ignore_index": "no"})


def test_mean_iou_by_hand(segmentation):
    logits = torch.tensor([[[[5.0, 5.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])  # class 0 everywhere
    labels = torch.tensor([[[0, 1], [0, 255]]])
    predictions, references = segmentation.compare(SimpleNamespace(logits=logits), {"labels": labels})
    assert predictions.shape == references.shape
    score = segmentation.build_score()
    score.update(predictions, references)
    result = score.compute()
    assert result["mean_iou"] == pytest.approx((2 / 3 + 0) / 2)  # class c occurs nowhere
    assert result["pixel_accuracy"] == pytest.approx(2 / 3)


def test_balanced_weights_count_pixels():
    task = build(train=mask_rows([[0, 0, 0, 1, 1, 255]]), class_weights="balanced")
    assert task.config_fields()["class_weights"] == pytest.approx([5 / 6, 5 / 4, 1.0])


def test_balanced_weights_need_ids_within_the_classes():
    table = Dataset.from_dict({"target": [[[0, 1, 300]]]})
    task = build(train=table, class_weights="balanced")
    with pytest.raises(ValueError, match="mask of training image 0 has the id 300, but there are 3 classes"):
        task.config_fields()
