"""Pascal VOC's xml, with its own folders and as exports lay it out."""

import logging

import pytest
from tiny_tuning import load
from tuning_fixtures import save_picture


OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
    "<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


def annotation(filename, *objects):
    entries = [OBJECT.format(*box, name=name, difficult=int(difficult)) for name, box, difficult in objects]
    return f"<annotation><filename>{filename}</filename>{''.join(entries)}</annotation>"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2012"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    entries = {
        "0": [("dog", (1, 1, 48, 36), False), ("cat", (5, 7, 24, 18), False)],
        "1": [("dog", (3, 3, 8, 8), False), ("dog", (1, 1, 4, 4), True)],
        "2": [("bird", (2, 2, 9, 9), False)],
    }
    for name, objects in entries.items():
        save_picture(root / "JPEGImages" / f"{name}.jpg", int(name))
        (root / "Annotations" / f"{name}.xml").write_text(annotation(f"{name}.jpg", *objects))
    (root / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("2\n")
    return root


def test_voc_counts_from_one_and_its_boxes_hold_their_last_pixel(voc, caplog):
    with caplog.at_level(logging.WARNING):
        images = load(voc, "object-detection")
    assert images.class_names == ("bird", "cat", "dog")
    assert [row["target"] for row in images.train] == [
        {"bbox": [[0, 0, 48, 36], [4, 6, 20, 12]], "category": [2, 1]},
        {"bbox": [[2, 2, 6, 6]], "category": [2]},
    ]
    assert [row["target"]["category"] for row in images.validation] == [[0]]
    assert "left out 1 objects that are called difficult" in caplog.text


def test_classes_are_in_the_given_order(voc):
    images = load(voc, "object-detection", classes=("dog", "cat", "bird"))
    assert images.class_names == ("dog", "cat", "bird")
    assert [row["target"]["category"] for row in images.train] == [[0, 1], [0]]


def test_lists_may_have_spaces_and_suffixes_and_say_what_is_missing(voc, caplog):
    (voc / "JPEGImages" / "0.jpg").rename(voc / "JPEGImages" / "my dog.v2.jpg")
    (voc / "Annotations" / "0.xml").unlink()
    (voc / "Annotations" / "my dog.v2.xml").write_text(annotation("my dog.v2.jpg", ("dog", (1, 1, 48, 36), False)))
    (voc / "ImageSets" / "Main" / "train.txt").write_text("my dog.v2\n1.jpg\nlost one\n")
    with caplog.at_level(logging.WARNING):
        images = load(voc, "object-detection")
    assert (len(images.train), len(images.validation)) == (2, 1)
    assert "left out 1 of 3 names, which have no xml: lost one" in caplog.text


def test_a_list_without_an_image(voc):
    (voc / "ImageSets" / "Main" / "val.txt").write_text("7\n8\n")
    with pytest.raises(ValueError, match=r"val\.txt lists no image that has an xml"):
        load(voc, "object-detection")


def test_without_lists_the_images_are_split_by_seed(voc):
    for name in ("train", "val"):
        (voc / "ImageSets" / "Main" / f"{name}.txt").unlink()
    images = load(voc, "object-detection", validation_share=0.34)
    assert (len(images.train), len(images.validation)) == (1, 2)


def test_xml_beside_the_images_below_folders_of_splits(voc, tmp_path):
    root = tmp_path / "export"
    for split, names in (("train", "01"), ("valid", "2")):
        for name in names:
            save_picture(root / split / f"{name}.jpg", int(name))
            (voc / "Annotations" / f"{name}.xml").rename(root / split / f"{name}.xml")
    images = load(root, "object-detection")
    assert (len(images.train), len(images.validation)) == (2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"0\.xml cannot be read as xml"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', r"0\.xml declares entities"),
        (annotation("0.jpg", ("", (1, 1, 2, 2), False)), "object 0 has no name"),
        (annotation("0.jpg", ("a", (1, "x", 2, 2), False)), "object 0: `ymin` must be a number, got 'x'"),
        (annotation("0.jpg", ("a", (1, "inf", 2, 2), False)), "`ymin` must be a number, got 'inf'"),
    ],
)
def test_wrong_xml_is_named(voc, text, message):
    (voc / "Annotations" / "0.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(voc, "object-detection")


def test_an_xml_without_its_image(voc):
    (voc / "JPEGImages" / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"0\.xml is about '0\.jpg', which is not in"):
        load(voc, "object-detection")
