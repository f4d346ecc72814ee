"""COCO's annotations in all their layouts, and what is left out or refused of them."""

import json
import logging
import math
import shutil

import numpy as np
import pytest
from tiny_tuning import load
from tuning_fixtures import HEIGHT, RECTANGLE, WIDTH, save_picture

from training.data.labeled.coco import holds_coco
from training.finetuning.tasks.detection import decode_mask


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
        (
            ("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"),
            ("train", "valid", "test"),
        ),
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


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ("annotations/instances_train2014.json", "annotations/instances_train2017.json")),
        ("train", ("annotations/instances_train.json", "train/_annotations.coco.json")),
        ("validation", ("annotations/instances_val2014.json", "annotations/instances_val2017.json")),
    ],
)
def test_several_files_for_one_split_are_refused(coco_folder, tmp_path, split, names):
    root = tmp_path / "layout"
    shutil.copytree(coco_folder / "images", root / "train")
    for name in {*names, "annotations/instances_train2014.json"} if split == "validation" else names:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(coco_folder / "annotations.json", root / name)
    with pytest.raises(
        ValueError, match=f"`data` must have one file of annotations for {split}, got {', '.join(names)} in"
    ):
        load(root, "object-detection")
    assert holds_coco(root)


def test_coco_file_alone(coco_folder):
    assert len(load(coco_folder / "annotations.json", "object-detection", validation_share=0.34).validation) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": []}, r"annotations\[0\] has the category 9; .* have the ids \(none\)\."),
        ({"categories": [{"id": 4, "name": "bus"}]}, r"annotations\[0\] has the category 9; .* have the ids 4"),
        ({"images": []}, r"annotations\[0\] names image 10, which is not in `images`"),
        ({"images": [{"id": 10, "file_name": "gone.png"}, {"id": 12, "file_name": "2.png"}]}, "names the image 'gone"),
        ({"images": None}, "lacks lists of images"),
        ({"images": [{"id": 10}]}, r"annotations.json: images\[0\] must have `file_name` of type str, got None"),
        ({"images": [{"file_name": "0.png"}]}, r"images\[0\] must have `id` of type int or str, got None"),
        ({"images": ["0.png"]}, r"images\[0\] must have `id`"),
        ({"categories": [{"id": 4, "name": "bus"}, {"id": 9}]}, r"categories\[1\] must have `name` of type str"),
        ({"categories": [{"id": [4], "name": "bus"}]}, r"categories\[0\] must have `id` of type int, got \[4\]"),
        ({"categories": [{"id": True, "name": "bus"}]}, r"categories\[0\] must have `id` of type int, got True"),
        ({"categories": [{"id": 4, "name": "\ud800"}]}, r"categories\[0\] must have a `name` that is valid Unicode"),
        (
            {"categories": [{"id": 4, "name": "bus"}, {"id": 9, "name": "person"}, {"id": 4, "name": "car"}]},
            r"annotations.json: categories\[2\] has the `id` 4 of entry 0: give each an id of its own",
        ),
        (
            {"images": [{"id": 10, "file_name": "0.png"}, {"id": 10, "file_name": "1.png"}]},
            r"annotations.json: images\[1\] has the `id` 10 of entry 0: give each an id of its own",
        ),
        ({"annotations": [{"image_id": True, "category_id": 9, "bbox": [4, 6, 20, 12]}]}, "`image_id` of type int or"),
        ({"annotations": [{"image_id": 10, "category_id": True, "bbox": [4, 6, 20, 12]}]}, "`category_id` of type int"),
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
        ([1, 2, 3, True], r"annotations\[1\] must have a `bbox` .* got \[1, 2, 3, True\]"),
        ([1, 2, 3, 10**400], r"annotations\[1\] must have a `bbox` .* got \[1, 2, 3, 10000"),
        ([1, 2, 3, 1e39], r"annotations\[1\] must have a `bbox` .* got \[1, 2, 3, 1e\+39\]"),
        ([1, 2, [3], 4], r"annotations\[1\] must have a `bbox` .* got \[1, 2, \[3\], 4\]"),
    ],
)
def test_broken_boxes_of_coco(coco_folder, coco_content, box, message):
    coco_content["annotations"][1]["bbox"] = box
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    with pytest.raises(ValueError, match=message):
        load(coco_folder, "object-detection")


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
    message = r"has no COCO annotations: give a json file, .* shows how to make COCO of Pascal VOC and YOLO"
    with pytest.raises(ValueError, match=message):
        load(class_folders, "object-detection")
    (class_folders / "data.yaml").write_text("train: images/train")
    with pytest.raises(ValueError, match=r"data\.yaml has no COCO annotations: give a json file"):
        load(class_folders / "data.yaml", "object-detection")


def test_coco_boxes_without_an_area_are_counted(coco_folder, coco_content, caplog):
    coco_content["annotations"] += [{"id": 5, "image_id": 12, "category_id": 4, "bbox": [3, 3, 0, 8.0]}]
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    with caplog.at_level(logging.WARNING):
        images = load(coco_folder, "object-detection")
    assert "annotations.json: left out 1 boxes without an area" in caplog.text
    boxes = [box for row in [*images.train, *images.validation] for box in row["target"]["bbox"]]
    assert [3, 3, 0, 8] not in boxes
    assert len(boxes) == 3


def test_coco_boxes_of_large_integers(coco_folder, coco_content):
    coco_content["annotations"][0]["bbox"] = [2**24 + 1, 0, 4, 4]
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    images = load(coco_folder, "object-detection", validation_share=0.34)
    boxes = [box for row in [*images.train, *images.validation] for box in row["target"]["bbox"]]
    assert [2**24, 0, 4, 4] in boxes


def test_coco_object_without_a_box(coco_folder, coco_content):
    del coco_content["annotations"][1]["bbox"]
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    with pytest.raises(
        ValueError, match=r"annotations\.json: annotations\[1\] must have `bbox` of type list, got None"
    ):
        load(coco_folder, "object-detection")


def test_outlines_of_coco_are_text(outlines_folder):
    images = load(outlines_folder, "instance-segmentation")
    assert images.class_names == ("box", "sheet")
    outlines = [row["target"]["segmentation"] for row in images.train]
    assert [len(of_image) for of_image in outlines] == [1, 1, 1, 0]
    assert all(isinstance(text, str) for of_image in outlines for text in of_image)  # no pixels
    assert np.array_equal(decode_mask(outlines[0][0], (HEIGHT, WIDTH), ""), RECTANGLE)


def test_detection_reads_no_outlines(outlines_folder):
    assert set(load(outlines_folder, "object-detection").train[0]["target"]) == {"bbox", "category"}


def test_coco_without_outlines(coco_folder):
    with pytest.raises(
        ValueError, match=r"annotations\[0\] has no `segmentation`: .* choose the task object-detection"
    ):
        load(coco_folder, "instance-segmentation")


@pytest.mark.parametrize("name", ["../outside.png", "a/../../outside.png", "{folder}/outside.png"])
def test_images_outside_of_the_folder_are_not_read(coco_folder, coco_content, name):
    save_picture(coco_folder / "outside.png", 0)
    coco_content["images"][0]["file_name"] = name = name.format(folder=coco_folder)
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    with pytest.raises(ValueError, match=r"annotations.json must name images within their folder, got `file_name` '"):
        load(coco_folder, "object-detection")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "\udcff.png"])
def test_names_that_no_file_can_have(coco_folder, coco_content, name):
    coco_content["images"][0]["file_name"] = name
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    with pytest.raises(ValueError, match=r"annotations\.json.*(names the image|valid Unicode)"):
        load(coco_folder, "object-detection")


def test_links_are_followed(coco_folder, tmp_path):
    (coco_folder / "images").rename(tmp_path / "elsewhere")
    (coco_folder / "images").symlink_to(tmp_path / "elsewhere")
    assert len(load(coco_folder, "object-detection").train) == 2


def test_both_splits_call_a_category_alike(coco_folder, coco_content, tmp_path):
    for split in ("train", "valid"):
        shutil.copytree(coco_folder / "images", tmp_path / "both" / split)
        (tmp_path / "both" / split / "_annotations.coco.json").write_text(json.dumps(coco_content))
        coco_content["categories"][0]["name"] = "cyclist"
    with pytest.raises(ValueError, match=r"valid/_anno.* calls the category 9 'cyclist', the training set 'person'"):
        load(tmp_path / "both", "object-detection")


def test_classification_says_that_annotations_are_for_other_tasks(coco_folder, class_folders):
    assert holds_coco(coco_folder)
    assert not holds_coco(class_folders)
    message = r"coco has COCO annotations, which are for the tasks object-detection and instance-segmentation"
    with pytest.raises(ValueError, match=message):
        load(coco_folder, "image-classification")
    (coco_folder / "annotations.json").write_text("[]")  # of something else
    assert not holds_coco(coco_folder)


def test_json_too_deep_to_read(coco_folder):
    (coco_folder / "annotations.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"annotations\.json cannot be read as json: "):
        load(coco_folder, "object-detection")
