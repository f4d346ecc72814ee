"""What labels stand for, and which are refused by image and column."""

import json
import math

import pytest
from datasets import ClassLabel, List, Sequence, Value
from tiny_tuning import load, save_labels, save_parquet

from training.data.labeled.labels import class_ids, name_classes


@pytest.mark.parametrize("label", [5, -1])
def test_label_outside_the_classes(tmp_path, label):
    save_parquet(tmp_path / "data.parquet", [0, 1, label, 1])
    with pytest.raises(
        ValueError, match=rf"label {label} of train image 2 \(column 'label'\) is none of the 2 classes"
    ):
        load(tmp_path / "data.parquet", "image-classification", classes=("x", "y"))


def test_name_outside_the_classes(tmp_path):
    save_parquet(tmp_path / "data.parquet", ["x", "w", "y"])
    with pytest.raises(ValueError, match=r"label 'w' of train image 1 .* of the 2 classes \(x, y\): .*`classes`"):
        load(tmp_path / "data.parquet", "image-classification", classes=("x", "y"))


@pytest.mark.parametrize(
    ("feature", "labels", "message"),
    [
        (
            Value("string"),
            ["a", None, "b"],
            r"train image 1 \(column 'label'\) is None, but classes are names or whole",
        ),
        (
            Value("int64"),
            [0, 1, None],
            r"train image 2 \(column 'label'\) is None, .* label the image, or leave it out",
        ),
        (List(Value("string")), [["a"], None], r"is None, .* label the image \(an empty list stands for no class\)"),
        (List(Value("string")), [["a"], [None]], r"train image 1 \(column 'label'\) is \[None\]"),
        (List(Value("float32")), [[0.5], [1.0]], r"train image 0 \(column 'label'\) is \[0.5\], but classes are names"),
        (List(Value("int64")), [[0, 1, 0], [1, 0, 0]], r"have 0 more than once: .*, not a 0 or 1 for each class"),
        (Value("float32"), [0.5, None], "train image 1 .column 'label'. is None, which is no finite number"),
        (Value("float32"), [0.5, math.nan], "train image 1 .column 'label'. is nan, which is no finite number"),
        (
            Value("string"),
            ["a", "a"],
            r"have one class, 'a' \(column 'label'\), and the classifier needs at least 2\.$",
        ),
        (List(Value("string")), [[], []], r"have no class \(column 'label'\), and the classifier needs at least 1\.$"),
        (ClassLabel(names=["p", "q"]), [1, 1], "have one class, 'q'"),
    ],
)
def test_wrong_labels(tmp_path, feature, labels, message):
    with pytest.raises(ValueError, match=message):
        load(save_labels(tmp_path / "saved", feature, labels), "image-classification")


@pytest.mark.parametrize(
    ("feature", "labels", "names"),
    [
        (List(Value("string")), [["b"], ["a", "c"], [], ["c", "c"]], ("a", "b", "c")),
        (Sequence(Value("int64")), [[1], [0, 2], [], [2]], ("class 0", "class 1", "class 2")),
        (List(ClassLabel(names=["p", "q", "r", "s"])), [[1], [0, 2], [], [2]], ("p", "q", "r", "s")),
    ],
)
def test_lists_of_labels(tmp_path, feature, labels, names):
    images = load(save_labels(tmp_path / "saved", feature, labels), "image-classification", validation_share=0.25)
    assert images.problem_type == "multi_label_classification"
    assert images.class_names == names
    rows = [*images.train["target"], *images.validation["target"]]
    assert sorted(sorted(set(row)) for row in rows) == [[], [0, 2], [1], [2]]


def test_lists_of_labels_may_have_one_class(tmp_path):
    data = save_labels(tmp_path / "saved", List(Value("string")), [["a"], [], ["a"], []])
    images = load(data, "image-classification")
    assert (images.problem_type, images.class_names) == ("multi_label_classification", ("a",))


def test_lists_of_labels_beside_images(class_folders):
    folder, labels = class_folders / "cat", {"1.png": ["cat"], "3.png": ["cat", "dog"], "5.png": []}
    lines = [json.dumps({"file_name": name, "labels": several}) for name, several in labels.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    images = load(folder, "image-classification", validation_share=0.34)
    assert (images.problem_type, images.class_names) == ("multi_label_classification", ("cat", "dog"))


def test_floats_are_measured_numbers(tmp_path):
    data = save_labels(tmp_path / "saved", Value("float32"), [0.5, 2.0, -1.0])
    images = load(data, "image-classification", validation_share=0.34)
    assert (images.problem_type, images.class_names) == ("regression", ())
    assert sorted([*images.train["target"], *images.validation["target"]]) == [-1, 0.5, 2]
    with pytest.raises(ValueError, match=r"`classes` names classes, but column 'label' of .* has floats"):
        load(data, "image-classification", classes=("x", "y"))


def test_truth_values_are_two_classes(tmp_path):
    images = load(save_labels(tmp_path / "saved", Value("bool"), [True, False, True]), "image-classification")
    assert images.problem_type == "single_label_classification"
    assert images.class_names == ("class 0", "class 1")
    assert sorted([*images.train["target"], *images.validation["target"]]) == [0, 1, 1]


def test_names_are_sorted_and_numbers_counted_up():
    assert name_classes(["b", "a", "b"]) == ("a", "b")
    assert name_classes([2, 0]) == ("class 0", "class 1", "class 2")
    assert name_classes([]) == ()


@pytest.mark.parametrize("stray", [10**6, 2 * 10**9, 10**400])
def test_a_stray_id_makes_no_classes(stray):
    with pytest.raises(ValueError, match=f"label {str(stray)[:20]} .* 3 ids: correct it, or give all `classes`"):
        name_classes([0, 1, stray, 1])


def test_many_classes_of_which_most_occur_need_no_names():
    assert len(name_classes(range(1, 20_000, 2))) == 20_000
    assert len(name_classes([9_999])) == 10_000


def test_many_classes_are_not_all_listed():
    ids = {f"c{number}": number for number in range(12)}
    assert class_ids(["c11", 3], ids, "image 7") == [11, 3]
    with pytest.raises(ValueError, match=r"label 'c12' of image 7 is none of the 12 classes \(c0, .*, c9, \.\.\.\): "):
        class_ids(["c12"], ids, "image 7")
