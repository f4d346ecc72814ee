"""CSV of boxes in the spellings that programs write, and of whole images."""

import logging

import pytest
from tiny_tuning import load
from tuning_fixtures import save_picture


@pytest.fixture
def pictures(tmp_path):
    for number in range(3):
        save_picture(tmp_path / "csv" / "images" / f"{number}.png", number)
    return tmp_path / "csv"


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", ["0.png,48,36,dog,4,6,24,18", "1.png,48,36,cat,0,0,8,9"]),
        ("Image,X1,Y1,X2,Y2,Label", ["0.png,4,6,24,18,dog", "1.png,0,0,8,9,cat"]),
        ("filename,width,height,class,x,y,w,h", ["0.png,48,36,dog,4,6,20,12", "1.png,48,36,cat,0,0,8,9"]),
        ("file_name,x,y,w,h,category", ["0.png,4,6,20,12,dog", "1.png,0,0,8,9,cat"]),
    ],
)
def test_spellings_of_boxes(pictures, header, lines):
    (pictures / "train.csv").write_text("\n".join([header, *lines, "2.png" + "," * header.count(",")]))
    (pictures / "val.csv").write_text("\n".join([header, lines[0]]))
    images = load(pictures, "object-detection")
    assert images.class_names == ("cat", "dog")
    assert [row["target"] for row in images.train] == [
        {"bbox": [[4, 6, 20, 12]], "category": [1]},
        {"bbox": [[0, 0, 8, 9]], "category": [0]},
        {"bbox": [], "category": []},
    ]
    assert len(images.validation) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename,class\n0.png,a\n", "must have columns of boxes, such as xmin, ymin, xmax, ymax or x, y, w, h;"),
        ("class,xmin\na,1\n", "must have one of the columns filename, file_name"),
        ("filename,class,xmin,ymin,xmax,ymax\n", "has no lines below its columns"),
        ("filename,class,xmin,ymin,xmax,ymax\n0.png,a,1,1,b,9\n", "line 2: `xmax` must be a number, got 'b'"),
        ("filename,class,xmin,ymin,xmax,ymax\n0.png,,1,1,5,9\n", "line 2 has no class"),
        ("filename,class,xmin,ymin,xmax,ymax\n9.png,a,1,1,5,9\n", r"names 1 images that are not there: 9\.png"),
        ("filename,class,xmin,ymin,xmax,ymax\n../0.png,a,1,1,5,9\n", "must name images within its folder"),
    ],
)
def test_wrong_tables_are_named(pictures, text, message):
    (pictures / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(pictures, "object-detection")


def test_classes_are_in_the_given_order(pictures):
    (pictures / "train.csv").write_text("image,label,x,y,w,h\n0.png,dog,4,6,20,12\n1.png,cat,0,0,8,9\n")
    (pictures / "val.csv").write_text("image,label,x,y,w,h\n2.png,cat,0,0,8,9\n")
    images = load(pictures, "object-detection", classes=("dog", "emu", "cat"))
    assert images.class_names == ("dog", "emu", "cat")
    assert [row["target"]["category"] for row in images.train] == [[0], [2]]
    with pytest.raises(ValueError, match=r"0\.png has the class 'dog', which is not in `classes` \(cat, emu\)"):
        load(pictures, "object-detection", classes=("cat", "emu"))


def test_boxes_without_an_area_are_left_out(pictures, caplog):
    lines = ["image,label,x1,y1,x2,y2", "0.png,dog,4,6,24,18", "0.png,dog,4,6,4,18", "1.png,dog,1,1,2,2"]
    (pictures / "train.csv").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        images = load(pictures, "object-detection", validation_share=0.5)
    assert sum(len(row["target"]["bbox"]) for table in (images.train, images.validation) for row in table) == 2
    assert "'train': left out 1 boxes without an area" in caplog.text


def test_several_lines_for_one_image_are_refused(pictures):
    (pictures / "train.csv").write_text("image,label\n0.png,dog\n1.png,cat\nimages/0.png,cat\n")
    with pytest.raises(ValueError, match=r"lines 2 and 4 both name 'images/0\.png', .*`metadata\.jsonl`.*--task obj"):
        load(pictures, "image-classification")


def test_a_class_for_each_image(pictures):
    (pictures / "train.csv").write_text("image,label\n0.png,dog\n1.png,cat\n")
    (pictures / "validation.csv").write_text("image,label\n2.png,cat\n")
    images = load(pictures, "image-classification")
    assert (images.class_names, images.train["target"][:], images.validation["target"][:]) == (
        ("cat", "dog"),
        [1, 0],
        [0],
    )


@pytest.mark.parametrize(
    ("labels", "problem_type"), [(("0", "1"), "single_label_classification"), (("0.5", "1"), "regression")]
)
def test_numbers_are_ids_or_measured(pictures, labels, problem_type):
    (pictures / "labels.csv").write_text(f"image,label\n0.png,{labels[0]}\n1.png,{labels[1]}\n2.png,0\n")
    assert load(pictures / "labels.csv", "image-classification", validation_share=0.34).problem_type == problem_type
