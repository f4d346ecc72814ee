"""Images with masks and depth maps in all their layouts, and those that are left out or refused."""

import logging
import shutil

import numpy as np
import pytest
from tiny_tuning import load


def write_lists(folder, **lists: str) -> None:
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, text in lists.items():
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)


def sizes_of(folder, **options) -> tuple[int, int]:
    images = load(folder, "semantic-segmentation", **options)
    return len(images.train), len(images.validation)


def test_masks_and_depth_maps(voc_folder, depth_folder):
    images = load(voc_folder, "semantic-segmentation", validation_share=0.25)
    assert images.class_names == ("ground", "plant", "sky")
    assert images.train[0]["target"].mode == "P"  # ids, not colors
    assert np.asarray(images.train[0]["target"])[0, 0] == 255
    images = load(depth_folder, "depth-estimation", validation_share=0.25)
    assert (len(images.train), len(images.validation)) == (3, 1)
    assert {row["target"].rpartition(".")[2] for row in [*images.train, *images.validation]} == {"png", "npy"}


def test_names_and_lists_of_voc(voc_folder, caplog):
    (voc_folder / "images").rename(voc_folder / "JPEGImages")
    (voc_folder / "masks").rename(voc_folder / "SegmentationClass")
    write_lists(voc_folder, train="0\n2\n7\n", val="1\n")
    with caplog.at_level(logging.WARNING):
        assert sizes_of(voc_folder) == (2, 1)
    assert "train.txt: left out 1 of 3 names, which have no image with a mask" in caplog.text
    (voc_folder / "ImageSets" / "Segmentation" / "val.txt").write_text("8\n")
    with pytest.raises(ValueError, match=r"val\.txt"):
        sizes_of(voc_folder)


def test_folders_of_splits_and_files_without_a_partner(voc_folder, tmp_path, caplog):
    for split in ("train", "valid"):
        shutil.copytree(voc_folder, tmp_path / "split" / split)
    images, masks = (tmp_path / "split" / "valid" / name for name in ("images", "masks"))
    (masks / "1.png").unlink()
    (images / "2.png").unlink()
    with caplog.at_level(logging.WARNING):
        assert sizes_of(tmp_path / "split") == (4, 2)
    assert f"{images}: left out 1 files without one of that name in {masks}: 1" in caplog.text
    assert f"{masks}: left out 1 files without one of that name in {images}: 2.png" in caplog.text
    for path in masks.iterdir():
        path.rename(path.with_name(f"mask-{path.name}"))
    with pytest.raises(ValueError, match="has the name of an image"):
        sizes_of(tmp_path / "split")
    shutil.rmtree(masks)
    with pytest.raises(ValueError, match=r"folder of images .*images.* and one of targets .*masks"):
        sizes_of(tmp_path / "split")


@pytest.mark.parametrize("name", ["classes.txt", "ImageSets/Segmentation/train.txt"])
def test_lists_that_are_no_text_are_named(voc_folder, name):
    write_lists(voc_folder, train="0", val="0")
    (voc_folder / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=name):
        sizes_of(voc_folder)
