"""Files that are no images are left out before training, and named."""

import logging

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tiny_tuning import load
from tuning_fixtures import save_picture

from training.data.labeled.readable import image_paths, readable_tables


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_files_that_are_no_images_are_named_and_left_out(class_folders, content, caplog):
    (class_folders / "cat" / "1.png").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        images = load(class_folders, "image-classification", validation_share=0.4)
    assert len(images.train) + len(images.validation) == 5
    assert f"skipping image {class_folders / 'cat' / '1.png'}: unreadable" in caplog.text
    assert "left out 1 of 6 train images, which cannot be opened" in caplog.text
    assert sorted(images.train["target"][:] + images.validation["target"][:]) == [0, 0, 1, 1, 1]


def test_a_split_of_no_images(class_folders):
    for path in class_folders.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 6 train images can be opened; the log names them"):
        load(class_folders, "image-classification")


def test_small_images_stay(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name)
    assert len(load(tmp_path, "image-classification", validation_share=0.5).train) == 1


def test_images_in_the_table_itself_have_no_path(tmp_path):
    save_picture(tmp_path / "1.png", 1)
    rows = [{"path": None, "bytes": b"x"}, {"path": str(tmp_path / "1.png"), "bytes": None}, None]
    features = Features({"image": ImageFeature(), "target": Value("int64")})
    table = Dataset.from_dict({"image": rows, "target": [0, 1, 2]}, features=features)
    assert image_paths(table, "image") == [None, str(tmp_path / "1.png"), None]
    assert image_paths(table, "target") == [None] * 3
    chosen = table.select([2, 1]).add_column("more", [1, 2])
    assert image_paths(chosen, "image") == [None, str(tmp_path / "1.png")]
    assert image_paths(table.select([1]).select([0, 0]), "image") == [str(tmp_path / "1.png")] * 2
    assert image_paths(table.select(range(1, 3)), "image") == [str(tmp_path / "1.png"), None]
    assert len(readable_tables({"train": table})["train"]) == 3
