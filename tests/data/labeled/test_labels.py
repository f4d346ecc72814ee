"""Labels of all types, and those that are refused by image and column."""

import json
import math

import pytest
from datasets import ClassLabel, List, Sequence, Value
from tiny_tuning import load, save_labels, save_parquet

from modeling_radio.data.labeled.labels import name_classes


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 5, 1], r"label 5 of train image 2 \(column 'label'\) is not one of the 2 classes \(x, y\).*`classes`"),
        ([0, 1, -1, 1], r"label -1 of train image 2"),
        (["x", "w", "y"], r"label 'w' of train image 1"),
    ],
)
def test_labels_outside_the_given_classes_are_refused(tmp_path, labels, message):
    save_parquet(tmp_path / "data.parquet", labels)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "data.parquet", "image-classification", classes=("x", "y"))


@pytest.mark.parametrize(
    ("feature", "labels", "message"),
    [
        (Value("string"), ["a", None, "b"], r"train image 1 \(column 'label'\) is None, but classes"),
        (List(Value("string")), [["a"], None], r"is None, .* empty list"),
        (List(Value("string")), [["a"], [None]], r"train image 1 \(column 'label'\) is \[None\]"),
        (List(Value("float32")), [[0.5], [1.0]], r"train image 0 \(column 'label'\) is \[0.5\], but classes"),
        (List(Value("int64")), [[0, 1, 0], [1, 0, 0]], "0 more than once"),
        (Value("float32"), [0.5, None], "train image 1 .column 'label'. is None, not a finite number"),
        (Value("float32"), [0.5, math.nan], "train image 1 .column 'label'. is nan, not a finite number"),
        (Value("string"), ["a", "a"], r"one class, 'a' \(column 'label'\), .* at least 2\.$"),
        (List(Value("string")), [[], []], r"no class \(column 'label'\), .* at least 1\.$"),
        (ClassLabel(names=["p", "q"]), [1, 1], "one class, 'q'"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, feature, labels, message):
    with pytest.raises(ValueError, match=message):
        load(save_labels(tmp_path / "saved", feature, labels), "image-classification")


@pytest.mark.parametrize(
    ("feature", "labels", "kind", "names", "targets"),
    [
        (
            List(Value("string")),
            [["b"], ["a", "c"], [], ["c", "c"]],
            "multi_label",
            ("a", "b", "c"),
            [[], [0, 2], [1], [2]],
        ),
        (
            Sequence(Value("int64")),
            [[1], [0, 2], [], [2]],
            "multi_label",
            ("class 0", "class 1", "class 2"),
            [[], [0, 2], [1], [2]],
        ),
        (
            List(ClassLabel(names=["p", "q", "r"])),
            [[1], [0, 2], [], [1]],
            "multi_label",
            ("p", "q", "r"),
            [[], [0, 2], [1], [1]],
        ),
        (List(Value("string")), [["a"], [], ["a"], []], "multi_label", ("a",), [[], [], [0], [0]]),
        (Value("bool"), [True, False, True], "single_label", ("class 0", "class 1"), [0, 1, 1]),
        (Value("float32"), [0.5, 2.0, -1.0], "regression", (), [-1, 0.5, 2]),
    ],
)
def test_types_decide_the_problem(tmp_path, feature, labels, kind, names, targets):
    data = save_labels(tmp_path / "saved", feature, labels)
    images = load(data, "image-classification", validation_share=0.34)
    assert images.problem_type == (kind if kind == "regression" else f"{kind}_classification")
    assert images.class_names == names
    found = [*images.train["target"], *images.validation["target"]]
    assert sorted(sorted(set(each)) if isinstance(each, list) else each for each in found) == targets
    if kind == "regression":
        with pytest.raises(ValueError, match=r"`classes` names classes"):
            load(data, "image-classification", classes=("x", "y"))


def test_lists_of_labels_beside_images(class_folders):
    folder, labels = class_folders / "cat", {"1.png": ["cat"], "3.png": ["cat", "dog"], "5.png": []}
    lines = [json.dumps({"file_name": name, "labels": several}) for name, several in labels.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    images = load(folder, "image-classification", validation_share=0.34)
    assert (images.problem_type, images.class_names) == ("multi_label_classification", ("cat", "dog"))


def test_names_are_sorted_and_numbers_counted_up():
    assert name_classes(["b", "a", "b"]) == ("a", "b")
    assert name_classes([2, 0]) == ("class 0", "class 1", "class 2")
    assert name_classes([]) == ()
