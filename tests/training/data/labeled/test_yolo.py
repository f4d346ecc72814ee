"""YOLO's txt files, as a yaml names them and as folders lay them out."""

import json
import logging

import pytest
from PIL import Image
from tiny_tuning import load
from tuning_fixtures import HEIGHT, WIDTH, save_picture


@pytest.fixture
def yolo(tmp_path):
    """Two training images, one without a txt, and a validation image with a polygon."""
    root = tmp_path / "yolo"
    for split, number in (("train", 0), ("train", 1), ("val", 2)):
        save_picture(root / "images" / split / f"{number}.png", number)
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    (root / "labels" / "train" / "0.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.5 0.5\n\n")
    (root / "labels" / "val" / "2.txt").write_text("1 0.25 0.25 0.75 0.25 0.75 0.75\n")
    (root / "data.yaml").write_text("path: elsewhere\ntrain: images/train\nval: images/val\nnames: {0: dog, 1: cat}\n")
    return root


BOXES = [[WIDTH * 3 / 8, HEIGHT / 4, WIDTH / 4, HEIGHT / 2], [0, 0, WIDTH / 2, HEIGHT / 2]]


@pytest.mark.parametrize("is_file", [True, False])
def test_yaml(yolo, is_file):
    images = load(yolo / "data.yaml" if is_file else yolo, "object-detection")
    assert images.class_names == ("dog", "cat")
    assert [row["target"] for row in images.train] == [
        {"bbox": BOXES, "category": [1, 0]},
        {"bbox": [], "category": []},
    ]
    (row,) = images.validation
    assert row["target"] == {"bbox": [[WIDTH / 4, HEIGHT / 4, WIDTH / 2, HEIGHT / 2]], "category": [1]}


def test_folders_without_a_yaml(yolo):
    (yolo / "data.yaml").unlink()
    assert load(yolo, "object-detection").class_names == ("class 0", "class 1")
    (yolo / "classes.txt").write_text("dog\ncat\n")
    images = load(yolo, "object-detection")
    assert (images.class_names, len(images.train), len(images.validation)) == (("dog", "cat"), 2, 1)


def test_shares_are_those_of_the_upright_image(yolo):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.new("RGB", (HEIGHT, WIDTH)).save(yolo / "images" / "train" / "0.png", exif=exif)
    images = load(yolo, "object-detection")
    assert images.train[0]["image"].size == (WIDTH, HEIGHT)
    assert images.train[0]["target"]["bbox"] == BOXES


def test_an_image_too_large_to_decode_is_named(yolo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(ValueError, match=r"0\.png cannot be opened: .*decompression bomb"):
        load(yolo, "object-detection")


def test_boxes_without_an_area_are_left_out(yolo, caplog):
    (yolo / "labels" / "train" / "0.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.5 0.5 0 0.5\n")
    with caplog.at_level(logging.WARNING):
        images = load(yolo, "object-detection")
    assert images.train[0]["target"] == {"bbox": BOXES[:1], "category": [1]}
    assert "'train': left out 1 boxes without an area" in caplog.text


def test_polygons_are_outlines(yolo):
    (yolo / "labels" / "train" / "0.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    images = load(yolo, "instance-segmentation")
    (outline,) = images.train[0]["target"]["segmentation"]
    assert json.loads(outline) == [[0, 0, WIDTH, 0, WIDTH, HEIGHT, 0, HEIGHT]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.25", r"0\.txt, line 1 must be a class and a box .* or a polygon, got 0 0\.5 0\.5 0\.25"),
        ("0.5 0.5 0.5 0.25 0.5", "line 1 must be a class and a box"),
        ("0 20 20 8 8", r"line 1 must have shares of the image in \[0, 1\], got 0 20 20 8 8"),
        ("0 a 0.5 0.25 0.5", "line 1 must be a number, got 'a'"),
        ("7 0.5 0.5 0.25 0.5", "has the class 7, but there are 2 classes, numbered from 0 to 1"),
    ],
)
def test_wrong_lines_are_named(yolo, line, message):
    (yolo / "labels" / "train" / "0.txt").write_text(line)
    with pytest.raises(ValueError, match=message):
        load(yolo, "object-detection")


def test_boxes_alone_are_no_instances(yolo):
    with pytest.raises(ValueError, match="has a box without an outline: choose object-detection"):
        load(yolo, "instance-segmentation")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/nothing\nnames: [a]", "names 'images/nothing', which is neither a folder nor a file"),
        ("names: [a]", "must name a folder of images as `train`"),
        ("train: images/train\nnames: {1: a}", "must have `names`, a list or a name for each number from 0"),
        ("train: [", "cannot be read as yaml"),
    ],
)
def test_wrong_yaml_is_named(yolo, text, message):
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(yolo, "object-detection")
