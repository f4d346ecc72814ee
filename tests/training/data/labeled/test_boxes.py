"""Which files of labels are taken, and what is said where there are none."""

import shutil

import pytest
from tiny_tuning import load

from training.data.labeled.boxes import read_boxes


def test_coco_wins_over_tables_beside_it(coco_folder):
    (coco_folder / "train.csv").write_text("filename,class,xmin,ymin,xmax,ymax\n")
    assert read_boxes(coco_folder, with_masks=False)[1] == ("bus", "person")


def test_a_folder_without_labels_of_objects(class_folders):
    with pytest.raises(ValueError, match=r"has no labels of objects: give COCO json .*, VOC xml .*, YOLO txt .*CSV"):
        load(class_folders, "object-detection")


def test_damaged_json_is_named(coco_folder, tmp_path):
    shutil.copytree(coco_folder / "images", tmp_path / "broken" / "images")
    (tmp_path / "broken" / "annotations.json").write_text("{")
    with pytest.raises(ValueError, match=r"annotations\.json cannot be read as json"):
        load(tmp_path / "broken", "object-detection")


def test_boxes_without_outlines_are_no_instances(coco_folder):
    (coco_folder / "annotations.json").unlink()
    (coco_folder / "train.csv").write_text("filename,class,xmin,ymin,xmax,ymax\n0.png,a,1,1,9,9\n")
    with pytest.raises(ValueError, match="boxes without outlines: choose the task object-detection"):
        load(coco_folder, "instance-segmentation")
