"""Each kind of source becomes two tables of images and targets."""

import json
import math
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Sequence, Value, load_from_disk
from PIL import Image as PilImage

from training.finetuning.data.sources import load_images
from training.finetuning.settings import FinetuneSettings


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def load(data, task, **options):
    return load_images(FinetuneSettings(checkpoint="checkpoint", task=task, data=str(data), output="output", **options))


def test_class_folders(class_folders):
    images = load(class_folders, "image-classification", validation_share=0.34)
    assert images.class_names == ("cat", "dog")
    assert (len(images.train), len(images.validation)) == (3, 3)
    assert images.train.column_names == ["image", "target"]
    assert sorted([*images.train["target"], *images.validation["target"]]) == [0, 0, 0, 1, 1, 1]


def test_the_split_is_seeded(class_folders):
    def validation(seed):
        rows = load(class_folders, "image-classification", validation_share=0.34, seed=seed).validation
        return [np.asarray(row["image"]).sum() for row in rows]

    assert validation(1) == validation(1)
    assert len({tuple(validation(seed)) for seed in range(3)}) > 1


def test_own_validation_split_is_taken(class_folders, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(class_folders, tmp_path / "split" / split)
    (tmp_path / "split" / "val" / "cat" / "1.png").unlink()
    images = load(tmp_path / "split", "image-classification")
    assert (len(images.train), len(images.validation)) == (6, 5)
    assert "its own validation split" in images.remark


def save_parquet(path, labels):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    rows = {"img": [PilImage.fromarray(pixels) for _ in labels], "label": labels}
    feature = Value("string") if isinstance(labels[0], str) else Value("int64")
    Dataset.from_dict(rows, features=Features({"img": Image(), "label": feature})).to_parquet(path)


def test_parquet_with_names(tmp_path):
    save_parquet(tmp_path / "data.parquet", ["b", "a", "b", "c"])
    images = load(tmp_path / "data.parquet", "image-classification", validation_share=0.25)
    assert images.class_names == ("a", "b", "c")
    assert sorted([*images.train["target"], *images.validation["target"]]) == [0, 1, 1, 2]


def test_parquet_folder_with_numbers(tmp_path):
    (tmp_path / "data").mkdir()
    save_parquet(tmp_path / "data" / "train-0.parquet", [2, 0, 2, 1])
    images = load(tmp_path / "data", "image-classification", classes=("x", "y", "z"))
    assert images.class_names == ("x", "y", "z")


def test_saved_dataset(tmp_path):
    pictures = [PilImage.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)) for _ in range(4)]
    features = Features({"image": Image(), "label": ClassLabel(names=["p", "q"])})
    table = Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, features=features)
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "saved")
    images = load(tmp_path / "saved", "image-classification")
    assert images.class_names == ("p", "q")
    assert (len(images.train), len(images.validation)) == (4, 1)


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


def save_labels(path, feature, labels):
    pictures = [PilImage.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)) for _ in labels]
    features = Features({"image": Image(), "label": feature})
    Dataset.from_dict({"image": pictures, "label": labels}, features=features).save_to_disk(path)
    return path


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


def test_a_format_of_a_saved_dataset_does_not_matter(tmp_path):
    table = load_from_disk(save_labels(tmp_path / "saved", Value("int64"), [0, 1, 1]))
    table.with_format("numpy").save_to_disk(tmp_path / "arrays")
    images = load(tmp_path / "arrays", "image-classification")
    assert isinstance(images.train[0]["image"], PilImage.Image)


def test_folder_of_images_without_classes(class_folders):
    with pytest.raises(ValueError, match=r"one class, 'cat'.* each class has its own sub-folder: cat/1\.png"):
        load(class_folders / "cat", "image-classification")


def test_missing_column_lists_those_that_exist(tmp_path):
    save_parquet(tmp_path / "data.parquet", [0, 1])
    with pytest.raises(
        ValueError, match=r"no column 'labl'\. Did you mean 'label'\?.*it has img, label.*target_column"
    ):
        load(tmp_path / "data.parquet", "image-classification", target_column="labl")
    with pytest.raises(ValueError, match="no column for the target of object-detection; it has img, label"):
        load(tmp_path / "data.parquet", "object-detection")


def test_masks(voc_folder):
    images = load(voc_folder, "semantic-segmentation", validation_share=0.25)
    assert images.class_names == ("ground", "plant", "sky")
    row = images.train[0]
    assert row["target"].mode == "P"  # ids, not colors
    assert np.asarray(row["target"])[0, 0] == 255


def test_voc_names_and_lists(voc_folder):
    (voc_folder / "images").rename(voc_folder / "JPEGImages")
    (voc_folder / "masks").rename(voc_folder / "SegmentationClass")
    lists = voc_folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n2\n3\n")
    (lists / "val.txt").write_text("1\n")
    images = load(voc_folder, "semantic-segmentation")
    assert (len(images.train), len(images.validation)) == (3, 1)


def test_mask_folders_by_split(voc_folder, tmp_path):
    for split in ("train", "valid"):
        shutil.copytree(voc_folder, tmp_path / "split" / split)
    (tmp_path / "split" / "valid" / "masks" / "0.png").unlink()
    images = load(tmp_path / "split", "semantic-segmentation")
    assert (len(images.train), len(images.validation)) == (4, 3)


def test_folder_without_masks(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"must have a folder of images .*images.* and one of targets .*masks"):
        load(tmp_path, "semantic-segmentation")


def test_masks_without_images(voc_folder):
    for path in (voc_folder / "masks").iterdir():
        path.rename(path.with_name(f"mask-{path.name}"))
    with pytest.raises(ValueError, match="has the name of an image"):
        load(voc_folder, "semantic-segmentation")


def test_coco(coco_folder):
    images = load(coco_folder, "object-detection", validation_share=0.34)
    assert images.class_names == ("bus", "person")  # in the order of ids 4 and 9
    rows = [*images.train, *images.validation]
    boxes = sorted((row["target"]["bbox"], row["target"]["category"]) for row in rows)
    assert boxes == [([], []), ([[4, 6, 20, 12], [0, 0, 48, 36]], [1, 0]), ([[10, 10, 8, 8]], [0])]


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), ("train2017", "val2017")),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train", "valid")),
    ],
)
def test_coco_layouts(coco_folder, tmp_path, names, folders):
    root = tmp_path / "layout"
    for name, folder in zip(names, folders, strict=True):
        shutil.copytree(coco_folder / "images", root / folder)
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(coco_folder / "annotations.json", root / name)
    images = load(root, "object-detection")
    assert (len(images.train), len(images.validation)) == (3, 3)


def test_coco_file_alone(coco_folder):
    assert len(load(coco_folder / "annotations.json", "object-detection", validation_share=0.34).validation) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [{"id": 4, "name": "bus"}]}, r"annotations\[0\] has the category 9; .* have the ids 4"),
        ({"images": []}, r"annotations\[0\] names image 10, which is not in `images`"),
        ({"images": [{"id": 10, "file_name": "gone.png"}, {"id": 12, "file_name": "2.png"}]}, "names the image 'gone"),
        ({"images": None}, "lacks lists of images"),
        ({"images": [{"id": 10}]}, r"annotations.json: images\[0\] must have `file_name` of type str, got None"),
        ({"images": [{"file_name": "0.png"}]}, r"images\[0\] must have `id` of type int or str, got None"),
        ({"images": ["0.png"]}, r"images\[0\] must have `id`"),
        ({"categories": [{"id": 4, "name": "bus"}, {"id": 9}]}, r"categories\[1\] must have `name` of type str"),
        ({"categories": [{"id": [4], "name": "bus"}]}, r"categories\[0\] must have `id` of type int, got \[4\]"),
    ],
)
def test_broken_coco(coco_folder, coco_content, change, message):
    (coco_folder / "annotations.json").write_text(json.dumps({**coco_content, **change}))
    with pytest.raises(ValueError, match=message):
        load(coco_folder, "object-detection")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (None, r"annotations.json: annotations\[1\] must have `bbox` of type list, got None"),
        ([], r"annotations\[1\] must have a `bbox` of x, y, width and height, the sides not negative, got \[\]"),
        ([1, 2, 3], r"annotations\[1\] must have a `bbox` .* got \[1, 2, 3\]"),
        ([1, 2, 3, -4], r"annotations\[1\] must have a `bbox` .* got \[1, 2, 3, -4\]"),
        ([1, 2, 3, math.nan], r"annotations\[1\] must have a `bbox` .* got \[1, 2, 3, nan\]"),
        ([1, 2, 3, "4"], r"annotations\[1\] must have a `bbox` .* got \[1, 2, 3, '4'\]"),
    ],
)
def test_broken_boxes_of_coco(coco_folder, coco_content, box, message):
    coco_content["annotations"][1]["bbox"] = box
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    with pytest.raises(ValueError, match=message):
        load(coco_folder, "object-detection")


def test_classes_of_one_name(coco_folder, coco_content, class_folders, voc_folder):
    coco_content["categories"] = [{"id": 4, "name": "boat"}, {"id": 9, "name": "boat"}]
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    message = "Several classes have the name 'boat': give `classes`, a name of its own for each in the order of their"
    with pytest.raises(ValueError, match=message):
        load(coco_folder, "object-detection")
    assert load(coco_folder, "object-detection", classes=("ship", "boat")).class_names == ("ship", "boat")
    with pytest.raises(ValueError, match="the name 'a'"):
        load(class_folders, "image-classification", classes=("a", "a", "b"))
    (voc_folder / "classes.txt").write_text("x\ny\nx\ny\n")
    with pytest.raises(ValueError, match="the name 'x', 'y'"):
        load(voc_folder, "semantic-segmentation")


def test_json_that_is_no_coco(coco_folder):
    (coco_folder / "annotations.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="no COCO json for detection: it lacks lists of categories, annotations"):
        load(coco_folder, "object-detection")
    (coco_folder / "annotations.json").write_text('[{"image_id": 10, "bbox": [0, 0, 4, 4], "score": 0.5}]')
    with pytest.raises(ValueError, match="it lacks lists of images, categories, annotations"):
        load(coco_folder, "object-detection")
    (coco_folder / "annotations.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as json"):
        load(coco_folder, "object-detection")


def test_folder_without_coco(class_folders):
    with pytest.raises(ValueError, match=r"has no COCO annotations: give a json file, or a folder with"):
        load(class_folders, "object-detection")


def test_depth(depth_folder):
    images = load(depth_folder, "depth-estimation", validation_share=0.25)
    assert (len(images.train), len(images.validation)) == (3, 1)
    assert {row["target"].rpartition(".")[2] for row in [*images.train, *images.validation]} == {"png", "npy"}


def test_path_that_does_not_exist():
    with pytest.raises(ValueError, match=r"`data` './nothing' does not exist"):
        load("./nothing", "image-classification")


def test_hub_id_that_cannot_be_opened():
    with pytest.raises(ValueError, match="`data` 'someone/pets' is no folder or file here, and no data set of the Hub"):
        load("someone/pets", "image-classification")


def test_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images in class sub-folders"):
        load(tmp_path / "empty", "image-classification")


def test_one_image_leaves_nothing_for_validation(tmp_path):
    with pytest.raises(ValueError, match="has one image: none is left for validation"):
        load(save_labels(tmp_path / "saved", Value("float32"), [0.5]), "image-classification")
