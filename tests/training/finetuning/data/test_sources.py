"""Each kind of source becomes two tables of images and targets."""

import json
import os
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from PIL import Image as PilImage
from tiny_tuning import load, save_labels, save_parquet
from tuning_fixtures import HEIGHT, WIDTH


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


@pytest.mark.parametrize(
    "feature",
    [Value("binary"), Value("large_binary"), {"bytes": Value("binary"), "path": Value("string")}],
)
def test_encoded_images_of_no_stated_type(tmp_path, class_folders, feature):
    files = [path.read_bytes() for path in sorted(class_folders.rglob("*.png"))]
    images = [{"bytes": content, "path": None} for content in files] if isinstance(feature, dict) else files
    features = Features({"jpg": feature, "label": Value("int64")})
    Dataset.from_dict({"jpg": images, "label": [0, 1] * 3}, features=features).to_parquet(tmp_path / "data.parquet")
    images = load(tmp_path / "data.parquet", "image-classification", validation_share=0.34)
    assert {row["image"].size for split in (images.train, images.validation) for row in split} == {(WIDTH, HEIGHT)}


def test_saved_dataset(tmp_path):
    pictures = [PilImage.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)) for _ in range(4)]
    features = Features({"image": Image(), "label": ClassLabel(names=["p", "q"])})
    table = Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, features=features)
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "saved")
    images = load(tmp_path / "saved", "image-classification")
    assert images.class_names == ("p", "q")
    assert (len(images.train), len(images.validation)) == (4, 1)


def test_a_format_of_a_saved_dataset_does_not_matter(tmp_path):
    table = load_from_disk(save_labels(tmp_path / "saved", Value("int64"), [0, 1, 1]))
    table.with_format("numpy").save_to_disk(tmp_path / "arrays")
    images = load(tmp_path / "arrays", "image-classification")
    assert isinstance(images.train[0]["image"], PilImage.Image)


def test_folder_of_images_without_classes(class_folders):
    with pytest.raises(ValueError, match=r"one class, 'cat'.* each class has its own sub-folder: cat/1\.png"):
        load(class_folders / "cat", "image-classification")


def test_labels_in_a_table_beside_the_images(class_folders):
    (class_folders / "cat" / "metadata.csv").write_text("file_name,label\n1.png,b\n3.png,a\n5.png,b\n")
    images = load(class_folders / "cat", "image-classification", validation_share=0.34, seed=1)
    assert images.class_names == ("a", "b")
    assert sorted([*images.train["target"], *images.validation["target"]]) == [0, 1, 1]


def test_missing_column_lists_those_that_exist(tmp_path):
    save_parquet(tmp_path / "data.parquet", [0, 1])
    with pytest.raises(
        ValueError, match=r"no column 'labl'\. Did you mean 'label'\?.*it has img, label.*target_column"
    ):
        load(tmp_path / "data.parquet", "image-classification", target_column="labl")
    with pytest.raises(ValueError, match="no column for the target of object-detection; it has img, label"):
        load(tmp_path / "data.parquet", "object-detection")


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


def test_pipes_and_folders_among_the_images_are_left_out(class_folders, voc_folder):
    for folder in (class_folders / "cat", voc_folder / "masks", voc_folder / "images"):
        os.mkfifo(folder / "pipe.png")
        (folder / "folder.png").mkdir()
    images = load(class_folders, "image-classification")
    assert len(images.train) + len(images.validation) == 6
    images = load(voc_folder, "semantic-segmentation")
    assert len(images.train) + len(images.validation) == 4
