"""COCO's annotations in all their layouts, and those that are left out or refused."""

import json
import logging
import shutil

import numpy as np
import pytest
from tiny_tuning import load
from tuning_fixtures import HEIGHT, RECTANGLE, WIDTH, save_image

from modeling_radio.data.labeled.coco import holds_coco
from modeling_radio.tuning.tasks.detection import decode_mask


TRAIN_2014, TRAIN_2017 = ("annotations/instances_train2014.json", "annotations/instances_train2017.json")
VALID_2014, VALID_2017 = ("annotations/instances_val2014.json", "annotations/instances_val2017.json")
ROBOFLOW = [f"{split}/_annotations.coco.json" for split in ("train", "valid", "test")]


def boxes_of(images) -> list:
    rows = [*images.train, *images.validation]
    return sorted(box for row in rows for box in zip(row["target"]["bbox"], row["target"]["category"], strict=True))


def test_coco(coco_folder, coco_content, caplog):
    """Crowds and boxes without an area are left out; integers above 2**24 are no error."""
    coco_content["annotations"] += [{"id": 5, "image_id": 12, "category_id": 4, "bbox": [3, 3, 0, 8.0]}]
    coco_content["annotations"] += [{"id": 6, "image_id": 12, "category_id": 4, "bbox": [2**24 + 1, 0, 4, 4]}]
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    expected = [([0, 0, 48, 36], 0), ([4, 6, 20, 12], 1), ([10, 10, 8, 8], 0), ([2**24, 0, 4, 4], 0)]
    with caplog.at_level(logging.WARNING):
        for data in (coco_folder, coco_folder / "annotations.json"):
            images = load(data, "object-detection", validation_share=0.34)
            assert images.class_names == ("bus", "person")  # in the order of ids 4 and 9
            assert (len(images.train), len(images.validation)) == (2, 1)
            assert boxes_of(images) == expected
    assert "annotations.json: left out 1 boxes without an area" in caplog.text


@pytest.mark.parametrize(
    ("names", "folders"), [((TRAIN_2017, VALID_2017), ("train2017", "val2017")), (ROBOFLOW, ("train", "valid", "test"))]
)
def test_layouts(coco_folder, tmp_path, names, folders):
    root = tmp_path / "layout"
    (coco_folder / "images").rename(tmp_path / "elsewhere")
    for name, folder in zip(names, folders, strict=True):
        root.mkdir(exist_ok=True)
        (root / folder).symlink_to(tmp_path / "elsewhere")  # links are followed
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(coco_folder / "annotations.json", root / name)
    images = load(root, "object-detection")
    assert (len(images.train), len(images.validation)) == (3, 3)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", (TRAIN_2014, TRAIN_2017)),
        ("train", ("annotations/instances_train.json", ROBOFLOW[0])),
        ("validation", (VALID_2014, VALID_2017)),
    ],
)
def test_several_files_for_one_split_are_refused(coco_folder, tmp_path, split, names):
    root = tmp_path / "layout"
    shutil.copytree(coco_folder / "images", root / "train")
    for name in {*names, TRAIN_2014} if split == "validation" else names:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(coco_folder / "annotations.json", root / name)
    with pytest.raises(ValueError, match=f"`data` .* for {split}, got {', '.join(names)} in"):
        load(root, "object-detection")
    assert holds_coco(root)


BUS = {"id": 4, "name": "bus"}
ANNOTATION = {"image_id": 10, "category_id": 9, "bbox": [4, 6, 20, 12]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [BUS]}, r"annotations\[0\] must have .* training set's `categories`"),
        ({"images": []}, r"annotations\[0\] must have .* `images`"),
        ({"annotations": [{**ANNOTATION, "bbox": None}]}, r"annotations\[0\] must have a `bbox`"),
        ({"images": None}, "lists of images"),
        ({"images": [{"id": 10}]}, r"annotations.json: each of `images` .*'file_name'"),
        ({"categories": [BUS, {"id": 9, "name": "person"}, BUS]}, "several categories with the `id` 4"),
        ({"images": [{"id": 10, "file_name": "0.png"}] * 2}, "several images with the `id` 10"),
        *(
            ({"images": [{"id": 10, "file_name": name}], "annotations": []}, rf"annotations\.json.*{what}")
            for name, what in (
                ("gone.png", "names the image 'gone"),
                ("x" * 5000, "names the image"),
                ("a/../../outside.png", "`file_name`"),
                ("FOLDER/outside.png", "`file_name`"),
            )
        ),
    ],
)
def test_broken_entries_are_named(coco_folder, coco_content, change, message):
    save_image(coco_folder / "outside.png", 0)
    if "FOLDER" in str(change):
        change["images"][0]["file_name"] = f"{coco_folder}/outside.png"
    (coco_folder / "annotations.json").write_text(json.dumps({**coco_content, **change}))
    with pytest.raises(ValueError, match=message):
        load(coco_folder, "object-detection")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": []}', "it lacks lists of categories, annotations"),
        ('[{"image_id": 10, "bbox": [0, 0, 4, 4], "score": 0.5}]', "it lacks lists of images, categories, annotations"),
        ("{", "cannot be read as json"),
        ("[" * 100_000, "cannot be read as json"),
    ],
)
def test_other_files_are_refused(coco_folder, class_folders, text, message):
    assert holds_coco(coco_folder)
    with pytest.raises(ValueError, match="object-detection and instance-segmentation"):
        load(coco_folder, "image-classification")
    (coco_folder / "annotations.json").write_text(text)
    assert not holds_coco(coco_folder)
    with pytest.raises(ValueError, match=message):
        load(coco_folder, "object-detection")
    (class_folders / "data.yaml").write_text("train: images/train")
    for data in (class_folders, class_folders / "data.yaml"):
        with pytest.raises(ValueError, match="no COCO annotations"):
            load(data, "object-detection")


def test_outlines_are_text(outlines_folder, coco_folder):
    images = load(outlines_folder, "instance-segmentation")
    assert images.class_names == ("box", "sheet")
    outlines = [row["target"]["segmentation"] for row in images.train]
    assert [len(of_image) for of_image in outlines] == [1, 1, 1, 0]
    assert all(isinstance(text, str) for of_image in outlines for text in of_image)  # no pixels
    assert np.array_equal(decode_mask(outlines[0][0], (HEIGHT, WIDTH), ""), RECTANGLE)
    assert load(outlines_folder, "object-detection").train[0]["target"].keys() == {"bbox", "category"}
    with pytest.raises(ValueError, match=r"annotations\[0\] has no `segmentation`"):
        load(coco_folder, "instance-segmentation")


def test_both_splits_must_call_a_category_alike(coco_folder, coco_content, tmp_path):
    for split in ("train", "valid"):
        shutil.copytree(coco_folder / "images", tmp_path / "both" / split)
        (tmp_path / "both" / split / "_annotations.coco.json").write_text(json.dumps(coco_content))
        coco_content["categories"][0]["name"] = "cyclist"
    with pytest.raises(ValueError, match=r"valid/_anno.* category 9 'cyclist', the training set 'person'"):
        load(tmp_path / "both", "object-detection")
