"""Boxes and outlines in all the ways that data sets state them, wrong ones, and scores that are known."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from tiny_tuning import build_task, picture, tuning_settings
from tuning_fixtures import HEIGHT, RECTANGLE, WIDTH, rectangle_image, run_lengths, save_image

from modeling_radio.data.labeled.images import OUTLINES, LabeledImages
from modeling_radio.tuning.data import build_transform
from modeling_radio.tuning.tasks.base import build_example
from modeling_radio.tuning.tasks.detection import (
    NO_OBJECT,
    DetectionTask,
    InstanceSegmentationTask,
    decode_mask,
)


OBJECTS = {"bbox": [[4, 6, 20, 12], [0, 0, 48, 36]], "category": [2, 0]}


def build(objects=OBJECTS, names=("a", "b", "c"), feature=None, **options):
    features = None if feature is None else Features({"target": feature})
    table = Dataset.from_dict({"target": [objects]}, features=features)
    return build_task(DetectionTask, "object-detection", names, table, **options)


@pytest.fixture
def detection():
    return build()


def read(task, objects):
    return task.read({"image": picture(), "target": objects}, "image 7")


@pytest.mark.parametrize(
    ("box_format", "box"), [("xywh", [4, 6, 20, 12]), ("xyxy", [4, 6, 24, 18]), ("cxcywh", [14, 12, 20, 12])]
)
def test_box_formats(box_format, box):
    task = build(box_format=box_format)
    sample = read(task, {"bbox": [box], "category": [2]})
    assert sample["boxes"].tolist() == [[4, 6, 24, 18]]
    labels = task.labels(sample)
    torch.testing.assert_close(labels["boxes"], torch.tensor([[14 / 48, 12 / 36, 20 / 48, 12 / 36]]))
    assert labels["class_labels"].tolist() == [2]


def test_objects_as_lists_of_objects(detection):
    target = [{"bbox": [0, 0, 4, 4], "category": 1}, {"bbox": [1, 1, 2, 2], "category": 0}]
    assert read(detection, target)["labels"].tolist() == [1, 0]
    for nothing in ([], None, {"bbox": [], "category": []}, {"bbox": None, "category": None}):
        sample = read(detection, nothing)
        assert (sample["boxes"].shape, sample["labels"].shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    ("box_key", "class_key"), [("bbox", "category"), ("boxes", "category_id"), ("bboxes", "label"), ("bbox", "labels")]
)
def test_spellings_of_keys_and_classes(box_key, class_key):
    objects = {box_key: [[4, 6, 20, 12]], class_key: [1]}
    task = build(objects, names=())
    assert task.class_names == ("class 0", "class 1")
    assert read(task, objects)["labels"].tolist() == [1]
    objects = {box_key: [[4, 6, 20, 12]] * 3, class_key: ["dog", "cat", "dog"]}
    task = build(objects, names=())
    assert task.class_names == ("cat", "dog")
    assert read(task, objects)["labels"].tolist() == [1, 0, 1]
    assert read(build(objects, names=("dog", "cat")), objects)["labels"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("as_list", [False, True])
def test_names_in_the_type_of_the_column(as_list):
    box, name = List(Value("float32")), ClassLabel(names=["x", "y", "z"])
    if as_list:
        task = build([{"bbox": [4, 6, 20, 12], "label": 1}], (), List({"bbox": box, "label": name}))
    else:
        task = build({"bbox": [[4, 6, 20, 12]], "label": [1]}, (), {"bbox": List(box), "label": List(name)})
    assert task.class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("objects", "problem"),
    [
        ({"bbox": [[0, 0, 4, 4]], "category": [3]}, "label 3"),
        ({"bbox": [[0, 0, 4, 4]], "category": ["d"]}, "label 'd'"),
        ({"bbox": [[50, 0, 4, 4]], "category": [0]}, "outside .*`box_format`"),
        ({"bbox": [[9, 9, -4, 4]], "category": [0]}, "empty"),
        ({"bbox": [[9, 9, math.nan, 4]], "category": [0]}, "not finite"),
        ({"bbox": [[9, 9, 4]] * 4, "category": [0] * 4}, "four numbers"),
        ({"bbox": [[9, 9, 4, 4]], "kind": [0]}, "category"),
        ([{"rectangle": [9, 9, 4, 4], "label": 0}], "bbox"),
        (5, "`target_column`"),
    ],
)
def test_wrong_objects_are_refused(detection, objects, problem):
    with pytest.raises(ValueError, match=problem) as error:
        read(detection, objects)
    assert "image 7" in str(error.value)


@pytest.mark.parametrize(
    ("objects", "problem"),
    [
        ({"bbox": [[0.4, 0.4, 0.1, 0.1], [0, 0, 1, 1.0001]], "category": [0, 1]}, "shares"),
        ({"bbox": [], "category": []}, "training images"),
    ],
)
def test_sources_without_boxes_are_refused(objects, problem):
    with pytest.raises(ValueError, match=problem):
        build(objects)
    train, validation = (Dataset.from_dict({"target": [row]}) for row in (OBJECTS, {"bbox": [], "category": []}))
    with pytest.raises(ValueError, match="validation images"):
        DetectionTask(tuning_settings("object-detection"), LabeledImages(train, validation, ("a",), ""))


def test_objects_that_would_stop_a_run_are_refused_before_it(detection, tmp_path):
    def prepare(task, num_queries):
        task.prepare(SimpleNamespace(config=SimpleNamespace(detection_num_queries=num_queries)))

    prepare(detection, 2)
    with pytest.raises(ValueError, match=r"training image 0 has 2, .*`config.detection_num_queries=2`"):
        prepare(detection, 1)
    with pytest.raises(ValueError, match="label 7 of training image 0"):
        prepare(build({"bbox": [[4, 6, 20, 12]], "category": [7]}), 2)
    save_image(tmp_path / "a.png", 0)
    columns = {"image": [str(tmp_path / "a.png")], "target": [{"bbox": [[9, 9, 4, 0]], "category": [0]}]}
    rows = Dataset.from_dict(columns).cast_column("image", Image())
    task = build_task(DetectionTask, "object-detection", ("a",), rows)
    for check in (lambda: prepare(task, 9), lambda: task.read(task.images.train[0], "training image 0")):
        with pytest.raises(ValueError, match=r"training image 0 \(.*a\.png\) is empty"):
            check()


def test_average_precision_by_hand(detection):
    truth = {"class_labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.8, 0.5, 0.2, 0.4]])}
    # The first query is right; the second has the right box of the second object but another class.
    outputs = SimpleNamespace(
        pred_boxes=torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.8, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]]]),
        logits=torch.tensor([[[-9.0, 5.0, -9.0], [-9.0, -9.0, 4.0], [-9.0, -9.0, -9.0]]]),
    )
    predictions, references = detection.compare(outputs, {"labels": [truth]})
    assert predictions.shape == references.shape == (1, 3, 6)
    assert references[0, 2, 4] == NO_OBJECT
    score = detection.build_score()
    score.update(predictions, references)
    assert score.compute()["map"] == pytest.approx(0.5)  # class 1 found, class 0 not
    score.reset()
    empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    predictions, references = detection.compare(outputs, {"labels": [empty]})
    assert references.shape == (1, 1, 6)  # not empty: processes could not exchange it
    score.update(predictions, references)
    assert "map" not in score.compute()  # nothing to find, nothing to score


def test_boxes_that_tiles_dropped_are_not_scored(detection):
    truth = {"class_labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.8, 0.5, 0.2, 0.4]])}
    logits = torch.full((1, 2, 3), -torch.inf)
    logits[0, 0, 1] = 5.0  # the second object has a right box alone, and that was dropped
    outputs = SimpleNamespace(pred_boxes=truth["boxes"][None], logits=logits)
    predictions, references = detection.compare(outputs, {"labels": [truth]})
    assert sorted(predictions[0, :, 4].tolist()) == [NO_OBJECT, 1]
    score = detection.build_score()
    score.update(predictions, references)
    assert score.compute()["mar_100"] == pytest.approx(0.5)
    assert len(detection.evidence(predictions, references).ranking.scores) == 1


def test_references_have_the_rows_of_the_fullest_image(detection):
    outputs = SimpleNamespace(pred_boxes=torch.rand(2, 9, 4), logits=torch.randn(2, 9, 3))
    labels = [{"class_labels": torch.arange(count), "boxes": torch.rand(count, 4)} for count in (1, 3)]
    predictions, references = detection.compare(outputs, {"labels": labels})
    assert predictions.shape == (2, 9, 6)
    assert references.shape == (2, 4, 6)
    assert references[..., 4].tolist() == [[0] + [NO_OBJECT] * 3, [0, 1, 2, NO_OBJECT]]


TRIANGLE = [[4, 6, 24, 6, 4, 18]]
OUTLINED = {
    "bbox": [[4, 6, 20, 12], [12, 10, 18, 8]],
    "category": [1, 0],
    "segmentation": [json.dumps(TRIANGLE), json.dumps([[12, 10, 30, 10, 30, 18, 12, 18]])],
}


def build_instances(objects=OUTLINED):
    table = Dataset.from_list([{"target": objects}])
    return build_task(InstanceSegmentationTask, "instance-segmentation", ("a", "b"), table)


@pytest.fixture
def instances():
    return build_instances()


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


RUNS = {"size": [HEIGHT, WIDTH]}


@pytest.mark.parametrize(
    "outline",
    [
        [],
        [[1, 1, 5, 5]],
        [1, 1, 5, 1, 5, 5],
        [[1, 1, 5, 1, 5, math.nan]],
        [[1, 2**63, 5, 10**20, math.nan, 1]],
        [[1, 1, 5, 1, 5, 5, 9]],
        None,
        "[" * 100_000,
        RUNS,
        *({**RUNS, "counts": counts} for counts in ([5], [], [5, -3, HEIGHT * WIDTH - 2], [HEIGHT * WIDTH, 1])),
        *({**RUNS, "counts": counts} for counts in ("5", "P", "~ !")),
    ],
)
def test_wrong_outlines_are_refused(outline):
    with pytest.raises(ValueError, match="outline of image 7"):
        decode_mask(outline, (HEIGHT, WIDTH), "image 7")


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_of_any_mask(seed):
    draw = np.random.default_rng(seed)
    mask = (draw.random((HEIGHT, WIDTH)) < draw.random()).astype(np.uint8)
    mask[:, : draw.integers(0, WIDTH)] = draw.integers(0, 2)  # long runs, whose numbers take several characters
    for compressed in (False, True):
        decoded = decode_mask(run_lengths(mask, compressed=compressed), (HEIGHT, WIDTH), "image 7")
        assert decoded.dtype == np.uint8
        assert np.array_equal(decoded, mask)


@pytest.mark.parametrize(
    "outline",
    [
        run_lengths(RECTANGLE.T, compressed=False),
        run_lengths(RECTANGLE.T, compressed=True),
        {"size": [10**9, 10**9], "counts": [10**18]},  # without memory for its pixels
    ],
)
def test_outlines_of_another_size_are_refused(outline):
    height, width = outline["size"]
    with pytest.raises(ValueError, match=f"image 7 .*{height} x {width} .*36 x 48"):
        decode_mask(outline, (HEIGHT, WIDTH), "image 7")


@pytest.mark.parametrize(
    ("objects", "problem"),
    [
        ({**OUTLINED, "segmentation": OUTLINED["segmentation"][:1]}, "training image 0 .*segmentation"),
        ({key: OUTLINED[key] for key in ("bbox", "category")}, "training image 0 .*no segmentation"),
    ],
)
def test_missing_outlines_are_refused_before_a_run(objects, problem):
    with pytest.raises(ValueError, match=problem):
        build_instances(objects).prepare(SimpleNamespace(config=SimpleNamespace(detection_num_queries=9)))


@pytest.mark.parametrize("outline", [TRIANGLE, run_lengths(RECTANGLE, compressed=True)])
def test_outlines_in_a_table(outline):
    task = build_instances([{"bbox": [4, 6, 20, 12], "label": 1, "segmentation": outline}] * 2)
    masks = task.read({"image": rectangle_image(), "target": task.images.train["target"][0]}, "image 0")["masks"]
    assert np.array_equal(masks[1], decode_mask(outline, (HEIGHT, WIDTH), ""))


@pytest.mark.parametrize("seed", range(6))
def test_masks_and_boxes_follow_the_image(seed, instances):
    chosen = tuning_settings("instance-segmentation")
    transform = build_transform(chosen, OUTLINES, (HEIGHT, WIDTH), is_training=True)
    row = {"image": rectangle_image(), "target": OUTLINED}
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
    sample = instances.read({"image": rectangle_image(), "target": OUTLINED}, "image 0")
    sample["masks"][0] = 0  # as where a crop has left the box without a pixel
    chosen = tuning_settings("instance-segmentation")
    transform = build_transform(chosen, OUTLINES, (HEIGHT, WIDTH), is_training=True)
    torch.manual_seed(0)
    out = transform(sample)
    assert out["labels"].tolist() == [0]
    assert out["masks"].shape == (1, HEIGHT, WIDTH)


def test_average_precision_of_masks_by_hand(instances):
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
