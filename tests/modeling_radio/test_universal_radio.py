"""Instance segmentation in the words of transformers' universal segmentation: the same model, other names."""

import pytest
import torch
from task_models import images, tiny_config
from transformers import AutoModelForUniversalSegmentation
from transformers.models.rf_detr.modeling_rf_detr import RfDetrInstanceSegmentationOutput

from modeling_radio import RadioForInstanceSegmentation, RadioForUniversalSegmentation


SIZE = (64, 96)
EMPTY = RfDetrInstanceSegmentationOutput()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RadioForUniversalSegmentation(tiny_config(detection_num_queries=6)).eval()


def squares(*corners):
    """Return masks `(n, height, width)` of squares of 16 pixels at these corners (top, left)."""
    masks = torch.zeros(len(corners), *SIZE)
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + 16, left : left + 16] = 1
    return masks


def test_labels_and_outputs_are_those_of_instance_segmentation(model):
    other = RadioForInstanceSegmentation(model.config).eval()
    other.load_state_dict(model.state_dict())
    pixel_values = images(2, SIZE)
    masks, classes = [squares((0, 0), (32, 48)), squares()], [torch.tensor([2, 0]), torch.tensor([], dtype=torch.long)]
    boxes = torch.tensor([[8 / 96, 8 / 64, 16 / 96, 16 / 64], [56 / 96, 40 / 64, 16 / 96, 16 / 64]])
    labels = [
        {"class_labels": classes[0], "boxes": boxes, "masks": masks[0]},
        {"class_labels": classes[1], "boxes": torch.zeros(0, 4), "masks": masks[1]},
    ]
    with torch.no_grad():
        torch.manual_seed(1)  # the mask loss draws points
        expected = other(pixel_values, labels=labels)
        torch.manual_seed(1)
        found = model(pixel_values, mask_labels=masks, class_labels=classes)
    torch.testing.assert_close(found.class_queries_logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.masks_queries_logits, expected.pred_masks, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss)
    assert list(found)[:3] == ["loss", "class_queries_logits", "masks_queries_logits"]


def test_boxes_are_shares_of_the_image_without_padding(model, monkeypatch):
    pixel_values, masks = images(1, SIZE), squares((0, 0), (16, 16))
    pixel_mask = torch.zeros(1, *SIZE, dtype=torch.long)
    pixel_mask[:, :32, :48] = 1
    seen = []
    monkeypatch.setattr(model, "detect", lambda _pixels, _mask, labels, *_: seen.append(labels[0]["boxes"]) or EMPTY)
    model(pixel_values, mask_labels=[masks], class_labels=[torch.tensor([0, 1])], pixel_mask=pixel_mask)
    expected = torch.tensor([[8 / 48, 8 / 32, 1 / 3, 1 / 2], [24 / 48, 24 / 32, 1 / 3, 1 / 2]])
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    ("masks", "classes", "message"),
    [
        ([squares((0, 0))], None, "`class_labels` must have one entry for each of the 1 images, got None"),
        ([], [torch.tensor([0])], "`mask_labels` must have one entry for each of the 1 images, got 0"),
        ([squares((0, 0))], [torch.tensor([0, 1])], r"`mask_labels\[0\]` must have the shape \(2, 64, 96\), got \(1, "),
        ([0 * squares((0, 0))], [torch.tensor([0])], r"`mask_labels\[0\]` must have at least one pixel in each mask"),
        ([squares((0, 0))], [torch.tensor([3])], r"`class_labels` of `labels\[0\]` must lie in \[0, 3\)"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(model, masks, classes, message):
    with pytest.raises(ValueError, match=message):
        model(images(1, SIZE), mask_labels=masks, class_labels=classes)


def test_folders_of_either_model_open_as_the_other(model, tmp_path):
    model.save_pretrained(tmp_path)
    opened = RadioForInstanceSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in opened.state_dict().items())
    opened.save_pretrained(tmp_path / "again")
    universal = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    assert type(universal).__name__ == "RadioForUniversalSegmentation"
    pixel_values = images(1, SIZE)
    with torch.no_grad():
        expected = model(pixel_values).masks_queries_logits
        torch.testing.assert_close(universal(pixel_values).masks_queries_logits, expected, rtol=0, atol=1e-5)
