"""Instance segmentation: outlines of every kind, masks that follow their boxes, and known scores."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from tiny_tuning import build_task, tuning_settings
from tuning_fixtures import HEIGHT, RECTANGLE, WIDTH, rectangle_picture, run_lengths

from training.finetuning.data import build_transform
from training.finetuning.tasks.base import build_example
from training.finetuning.tasks.detection import NO_OBJECT, InstanceSegmentationTask, decode_mask


TRIANGLE = [[4, 6, 24, 6, 4, 18]]
OBJECTS = {
    "bbox": [[4, 6, 20, 12], [12, 10, 18, 8]],
    "category": [1, 0],
    "segmentation": [json.dumps(TRIANGLE), json.dumps([[12, 10, 30, 10, 30, 18, 12, 18]])],
}


def build(objects=OBJECTS):
    table = Dataset.from_list([{"target": objects}])
    return build_task(InstanceSegmentationTask, "instance-segmentation", ("a", "b"), table)


def settings(**options):
    return tuning_settings("instance-segmentation", **options)


@pytest.fixture
def instances():
    return build()


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "outline",
    [
        [[12, 10, 30, 10, 30, 18, 12, 18]],
        [[12, 10, 20, 10, 20, 18, 12, 18], [1, 1, 2, 2], [20, 10, 30, 10, 30, 18, 20, 18]],  # two parts, and a line
        run_lengths(RECTANGLE, compressed=True),
        run_lengths(RECTANGLE, compressed=False),
    ],
)
def test_outlines(outline, as_json):
    mask = decode_mask(json.dumps(outline) if as_json else outline, (HEIGHT, WIDTH), "image 7")
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, RECTANGLE)


@pytest.mark.parametrize(
    "outline",
    [
        [],
        [[1, 1, 5, 5]],
        [1, 1, 5, 1, 5, 5],
        [[1, 1, 5, 1, 5, math.nan]],
        [[1, 1, 5, 1, 5, 1e9]],
        None,
        "polygon",
        {"size": [HEIGHT, WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": [5, -3, HEIGHT * WIDTH - 2]},
        {"size": [HEIGHT, WIDTH], "counts": [5]},
        {"size": [HEIGHT, WIDTH], "counts": []},
        {"size": [HEIGHT, WIDTH], "counts": [5.0, HEIGHT * WIDTH - 5]},
        {"size": [HEIGHT, WIDTH], "counts": [True, HEIGHT * WIDTH - 1]},
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH, 1]},
        {"size": [HEIGHT, WIDTH], "counts": "5"},
        {"size": [HEIGHT, WIDTH], "counts": "P"},
        {"size": [HEIGHT, WIDTH], "counts": "~ !"},
        {"size": [HEIGHT, WIDTH], "counts": 5},
        {"size": HEIGHT, "counts": [5]},
        [[1, 1, 5, 1, 5, 5, 9]],
        [[1, 1, 5, 1, 5, 10**400]],
        [["1", "1", "5", "1", "5", "5"]],
        "[" * 100_000,
    ],
)
def test_wrong_outlines(outline):
    with pytest.raises(
        ValueError,
        match="outline of image 7 must be polygons of at least three points in the image or run lengths that",
    ):
        decode_mask(outline, (HEIGHT, WIDTH), "image 7")


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_of_any_mask(seed):
    draw = np.random.default_rng(seed)
    mask = (draw.random((HEIGHT, WIDTH)) < draw.random()).astype(np.uint8)
    mask[:, : draw.integers(0, WIDTH)] = draw.integers(0, 2)  # long runs, whose numbers take several characters
    for compressed in (False, True):
        decoded = decode_mask(run_lengths(mask, compressed=compressed), (HEIGHT, WIDTH), "image 7")
        assert decoded.dtype == np.uint8
        assert np.array_equal(decoded, mask)


def test_runs_of_a_huge_image_take_no_memory():
    with pytest.raises(ValueError, match=r"has 1000000000 x 1000000000 pixels but its image 36 x 48"):
        decode_mask({"size": [10**9, 10**9], "counts": [10**18]}, (HEIGHT, WIDTH), "image 7")


@pytest.mark.parametrize("compressed", [False, True])
def test_outlines_of_another_size(compressed):
    outline = run_lengths(RECTANGLE.T, compressed=compressed)
    with pytest.raises(ValueError, match=r"of image 7 has 48 x 36 pixels but its image 36 x 48 \(height x width\)"):
        decode_mask(outline, (HEIGHT, WIDTH), "image 7")


def test_masks_are_read(instances):
    sample = instances.read({"image": rectangle_picture(), "target": OBJECTS}, "image 0")
    assert sample["masks"].shape == (2, HEIGHT, WIDTH)
    assert sample["masks"][0].sum() == pytest.approx(20 * 12 / 2, rel=0.1)
    assert np.array_equal(sample["masks"][1], RECTANGLE)
    labels = instances.labels(sample)
    assert type(labels["masks"]) is torch.Tensor
    nothing = instances.read({"image": rectangle_picture(), "target": {key: [] for key in OBJECTS}}, "image 0")
    assert nothing["masks"].shape == (0, HEIGHT, WIDTH)


def test_fewer_outlines_than_boxes(instances):
    objects = {**OBJECTS, "segmentation": OBJECTS["segmentation"][:1]}
    with pytest.raises(ValueError, match="objects of image 7 have 2 boxes but 1 outlines"):
        instances.read({"image": rectangle_picture(), "target": objects}, "image 7")


@pytest.mark.parametrize("outline", [TRIANGLE, run_lengths(RECTANGLE, compressed=True)])
def test_outlines_in_a_table(outline):
    task = build([{"bbox": [4, 6, 20, 12], "label": 1, "segmentation": outline}] * 2)
    masks = task.read({"image": rectangle_picture(), "target": task.images.train["target"][0]}, "image 0")["masks"]
    assert np.array_equal(masks[1], decode_mask(outline, (HEIGHT, WIDTH), ""))


def test_objects_without_outlines():
    with pytest.raises(ValueError, match=r"training image 0 have no segmentation .*; they have bbox, category"):
        build({key: OBJECTS[key] for key in ("bbox", "category")})


@pytest.mark.parametrize("seed", range(20))
def test_masks_and_boxes_follow_the_image(seed, instances):
    transform = build_transform(settings(color_jitter=0.0), (HEIGHT, WIDTH), is_training=True)
    row = {"image": rectangle_picture(), "target": OBJECTS}
    example = build_example(instances, transform, row, "image 0", (seed, 0, 0))
    labels = example["labels"]
    assert len(labels["boxes"]) == len(labels["masks"]) == len(labels["class_labels"])
    for box, mask, number in zip(labels["boxes"], labels["masks"], labels["class_labels"], strict=True):
        rows, cols = torch.nonzero(mask, as_tuple=True)
        seen = torch.stack([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1])
        center, sides = box[:2], box[2:]
        found = torch.cat([center - sides / 2, center + sides / 2]) * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
        assert (found - seen).abs().max() <= 2.5  # a crop of a third is enlarged, and with it half a pixel
        if number == 0:
            red = example["pixel_values"][0] > 0.5
            assert (red != mask.bool()).float().mean() < 0.06


def test_an_object_that_is_cropped_away_takes_its_mask_along(instances):
    sample = instances.read({"image": rectangle_picture(), "target": OBJECTS}, "image 0")
    sample["masks"][0] = 0  # as where a crop has left the box without a pixel
    transform = build_transform(
        settings(color_jitter=0.0, flip_probability=0.0),
        (HEIGHT, WIDTH),
        is_training=True,
    )
    torch.manual_seed(0)
    out = transform(sample)
    assert out["labels"].tolist() == [0]
    assert out["masks"].shape == (1, HEIGHT, WIDTH)


def test_average_precision_by_hand(instances):
    masks = torch.zeros(2, 32, 48)
    masks[0, :, :24], masks[1, 8:16, 24:40] = 1, 1
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [32 / 48, 12 / 32, 16 / 48, 8 / 32]])
    truth = {"class_labels": torch.tensor([1, 0]), "boxes": boxes, "masks": masks}
    # All boxes are right. Of the masks the first is right, and the second covers a quarter of the object.
    small = torch.full((3, 8, 12), -5.0)
    small[0, :, :6], small[1, 2:3, 6:8] = 5, 5
    logits = torch.tensor([[[-9.0, 5.0], [4.0, -9.0], [-9.0, -9.0]]])
    queries = [1, 2, 0]  # the most certain need not come first
    predicted = torch.cat([boxes, torch.tensor([[0.1, 0.1, 0.1, 0.1]])])
    outputs = SimpleNamespace(
        logits=logits[:, queries], pred_boxes=predicted[None, queries], pred_masks=small[None, queries]
    )
    predictions, references = instances.compare(outputs, {"labels": [truth]})
    assert predictions.shape == references.shape == (1, 3, 6 + 8 * 12)
    score = instances.build_score()
    score.update(predictions, references)
    result = score.compute()
    assert result["map"] == 1
    assert result["mask_map"] == pytest.approx(0.5)
    assert result["map_small"] == 1  # by the area of masks as in COCO: 8 x 16 and 32 x 24 pixels
    assert "map_medium" not in result
    score.reset()
    empty = {key: value[:0] for key, value in truth.items()}
    score.update(*instances.compare(outputs, {"labels": [empty]}))
    assert "mask_map" not in score.compute()


def test_masks_are_drawn_in_the_color_of_their_class(instances):
    rows = torch.zeros(2, 6 + 8 * 12)
    rows[0, :6] = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0, 1.0])
    rows[0, 6:] = 1
    rows[1] = NO_OBJECT
    ax = Figure().add_subplot()
    instances.draw_truth(ax, torch.zeros(32, 48, 3), rows)
    assert len(ax.patches) == 1
    image, mask = ax.images
    assert mask.get_array().shape == (8, 12)
    assert mask.get_extent() == image.get_extent()
    assert mask.cmap(0)[:3] == pytest.approx((1.0, 0.498, 0.055), abs=1e-2)  # C1
