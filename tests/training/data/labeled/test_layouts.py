"""Images with masks and depth maps in all their layouts, and what is left out or refused of them."""

import logging
import shutil

import numpy as np
import pytest
from tiny_tuning import load


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


def test_depth(depth_folder):
    images = load(depth_folder, "depth-estimation", validation_share=0.25)
    assert (len(images.train), len(images.validation)) == (3, 1)
    assert {row["target"].rpartition(".")[2] for row in [*images.train, *images.validation]} == {"png", "npy"}


def test_files_without_a_partner_are_counted(voc_folder, caplog):
    (voc_folder / "masks" / "1.png").unlink()
    (voc_folder / "images" / "2.png").unlink()
    with caplog.at_level(logging.WARNING):
        images = load(voc_folder, "semantic-segmentation", validation_share=0.5)
    assert len(images.train) + len(images.validation) == 2
    assert (
        f"{voc_folder / 'images'}: left out 1 files without one of that name in {voc_folder / 'masks'}: 1"
        in caplog.text
    )
    assert (
        f"{voc_folder / 'masks'}: left out 1 files without one of that name in {voc_folder / 'images'}: 2.png"
        in caplog.text
    )


def test_names_of_voc_without_a_mask_are_counted(voc_folder, caplog):
    lists = voc_folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n2\n7\n")
    (lists / "val.txt").write_text("1\n")
    with caplog.at_level(logging.WARNING):
        assert len(load(voc_folder, "semantic-segmentation").train) == 2
    assert "train.txt: left out 1 of 3 names, which have no image with a mask" in caplog.text
    (lists / "val.txt").write_text("8\n")
    with pytest.raises(ValueError, match=r"val\.txt lists no image that has a mask"):
        load(voc_folder, "semantic-segmentation")


@pytest.mark.parametrize("name", ["classes.txt", "ImageSets/Segmentation/train.txt"])
def test_lists_that_are_no_text_are_named(voc_folder, name):
    (voc_folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for file in ("train.txt", "val.txt"):
        (voc_folder / "ImageSets" / "Segmentation" / file).write_text("0")
    (voc_folder / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=rf"{name} must be a text in UTF-8: 'utf-8' codec can't decode"):
        load(voc_folder, "semantic-segmentation")
