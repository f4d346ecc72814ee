"""Boxes in all the ways that data sets state them, what is refused, and scores that are known."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from tiny_tuning import build_task, picture, tuning_settings
from tuning_fixtures import save_picture

from training.finetuning.data import LabeledImages
from training.finetuning.tasks.detection import NO_OBJECT, DetectionTask


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


@pytest.mark.parametrize("box_key", ["bbox", "boxes"])
@pytest.mark.parametrize("class_key", ["category", "category_id", "label", "labels"])
def test_spellings(box_key, class_key):
    objects = {box_key: [[4, 6, 20, 12]], class_key: [1]}
    task = build(objects, names=())
    assert task.class_names == ("class 0", "class 1")
    assert read(task, objects)["labels"].tolist() == [1]


def test_names_of_classes():
    objects = {"bbox": [[4, 6, 20, 12]] * 3, "label": ["dog", "cat", "dog"]}
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
    ("objects", "message"),
    [
        ({"bbox": [[0, 0, 4, 4]], "category": [3]}, r"label 3 of image 7 is none of the 3 classes \(a, b, c\)"),
        ({"bbox": [[0, 0, 4, 4]], "category": ["d"]}, "label 'd' of image 7 is none of the 3 classes"),
        ({"bbox": [[0, 0, 4, 4]], "category": [None]}, "label None of image 7 is none of the 3 classes"),
        ({"bbox": [[0, 0, 4, 4]], "category": [0, 1]}, "objects of image 7 have 1 boxes but 2 classes"),
        ({"bbox": [[50, 0, 4, 4]], "category": [0]}, "A box of image 7 lies outside its 36 x 48 pixels.*`box_format`"),
        ({"bbox": [[-9, 0, 4, 4]], "category": [0]}, "A box of image 7 lies outside its 36 x 48 pixels"),
        ({"bbox": [[9, 9, -4, 4]], "category": [0]}, r"A box of image 7 is empty: .* \[9.0, 9.0, 5.0, 13.0\].*xywh"),
        ({"bbox": [[9, 9, 4, 0]], "category": [0]}, "A box of image 7 is empty"),
        ({"bbox": [[9, 9, math.nan, 4]], "category": [0]}, "A box of image 7 is not finite"),
        ({"bbox": [[9, 9, math.inf, 4]], "category": [0]}, "A box of image 7 is not finite"),
        ({"bbox": [[9, 9, 4]] * 4, "category": [0] * 4}, "boxes of image 7 must be four numbers each, got "),
        ({"bbox": [{"xmin": 9}], "category": [0]}, "boxes of image 7 must be four numbers each, got "),
        ({"bbox": [[9, 9, 4, 4]], "kind": [0]}, r"no category \(category, .*labels\); they have bbox, kind"),
        ([{"rectangle": [9, 9, 4, 4], "label": 0}], r"no bbox \(bbox, boxes, bboxes\); they have rectangle, label"),
        (5, r"objects of image 7 must be lists by key or a list of objects, got 5\. See `target_column`\."),
        ('[{"bbox": ', "objects of image 7 must be lists by key or a list of objects, got '"),
    ],
)
def test_wrong_objects(detection, objects, message):
    with pytest.raises(ValueError, match=message):
        read(detection, objects)


def test_width_and_height_taken_for_corners():
    with pytest.raises(ValueError, match=r"is empty: .* \[30.0, 20.0, 10.0, 12.0\].* pixels, xyxy; see `box_format`"):
        read(build(box_format="xyxy"), {"bbox": [[30, 20, 10, 12]], "category": [0]})


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[0.4, 0.4, 0.1, 0.1], [0, 0, 1, 1.0001]], "category": [0, 1]}, "'data' .* seem to be shares of the"),
        ({"bbox": [], "category": []}, "'data' has no boxes in its training images"),
        ({"bbox": [], "kind": []}, "objects of training image 0 have no category"),
    ],
)
def test_sources_that_train_on_nothing(objects, message):
    with pytest.raises(ValueError, match=message):
        build(objects)


def test_validation_needs_boxes_too():
    train, validation = (Dataset.from_dict({"target": [row]}) for row in (OBJECTS, {"bbox": [], "category": []}))
    with pytest.raises(ValueError, match="'data' has no boxes in its validation images"):
        DetectionTask(tuning_settings("object-detection"), LabeledImages(train, validation, ("a",), ""))


def model_of(num_queries):
    return SimpleNamespace(config=SimpleNamespace(detection_num_queries=num_queries))


def test_more_objects_than_queries_are_refused_before_the_run(detection):
    detection.prepare(model_of(2))
    with pytest.raises(
        ValueError, match=r"No more than 1 objects, .* training image 0 has 2, .*`config\.detection_num_queries=2`"
    ):
        detection.prepare(model_of(1))


def test_classes_that_are_none_are_refused_before_the_run():
    task = build({"bbox": [[4, 6, 20, 12]], "category": [7]})
    with pytest.raises(ValueError, match="The label 7 of training image 0 is none of the"):
        task.prepare(model_of(2))


def test_boxes_that_are_none_are_refused_before_the_run_with_their_file(tmp_path):
    save_picture(tmp_path / "a.png", 0)
    columns = {"image": [str(tmp_path / "a.png")], "target": [{"bbox": [[9, 9, 4, 0]], "category": [0]}]}
    task = build_task(
        DetectionTask, "object-detection", ("a",), Dataset.from_dict(columns).cast_column("image", Image())
    )
    for check in (lambda: task.prepare(model_of(9)), lambda: task.read(task.images.train[0], "training image 0")):
        with pytest.raises(ValueError, match=r"A box of training image 0 \(.*a\.png\) is empty"):
            check()


def detection_outputs(boxes, logits):
    return SimpleNamespace(pred_boxes=torch.tensor([boxes]), logits=torch.tensor([logits]))


def test_average_precision_by_hand(detection):
    truth = {"class_labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.8, 0.5, 0.2, 0.4]])}
    # The first query is right; the second has the right box of the second object but another class.
    outputs = detection_outputs(
        [[0.25, 0.5, 0.5, 1.0], [0.8, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]],
        [[-9.0, 5.0, -9.0], [-9.0, -9.0, 4.0], [-9.0, -9.0, -9.0]],
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


def test_references_have_the_rows_of_the_fullest_image(detection):
    outputs = SimpleNamespace(pred_boxes=torch.rand(2, 9, 4), logits=torch.randn(2, 9, 3))
    labels = [{"class_labels": torch.arange(count), "boxes": torch.rand(count, 4)} for count in (1, 3)]
    predictions, references = detection.compare(outputs, {"labels": labels})
    assert predictions.shape == (2, 9, 6)
    assert references.shape == (2, 4, 6)
    assert references[..., 4].tolist() == [[0] + [NO_OBJECT] * 3, [0, 1, 2, NO_OBJECT]]
