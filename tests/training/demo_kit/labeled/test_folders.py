"""The folders of the fine-tuning demo, on drawn assets and made-up digits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from training.demo_kit.labeled import folders as labeled_folders
from training.demo_kit.labeled.folders import (
    write_depths,
    write_digits,
    write_masks,
    write_objects,
    write_single_subjects,
    write_subjects,
)
from training.finetuning.tasks.instances import decode_mask


@pytest.fixture(autouse=True)
def _few(assets, monkeypatch):
    monkeypatch.setattr(labeled_folders, "load_demo_assets", lambda: assets)
    monkeypatch.setattr(labeled_folders, "NUM_SCENES", 6)
    monkeypatch.setattr(labeled_folders, "NUM_VALIDATION", 4)


def names_below(folder):
    return sorted(path.name for path in folder.rglob("*.png"))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Ten digits, each of one gray level: row i shows the digit i as i + 1."""
    folder = tmp_path / "sklearn/datasets/data"
    folder.mkdir(parents=True)
    rows = np.array([[number + 1] * 64 + [number] for number in range(10)])
    np.savetxt(folder / "digits.csv.gz", rows, fmt="%d", delimiter=",")
    monkeypatch.setattr(labeled_folders, "fetch_package", lambda package: tmp_path)


@pytest.mark.usefixtures("digits")
def test_each_draw_holds_out_other_digits(tmp_path):
    held_out = []
    for draw in (0, 1):
        write_digits(tmp_path / str(draw), 16, draw)
        digits = {
            split: {path.parent.name for path in (tmp_path / str(draw) / split).rglob("*.png")}
            for split in ("train", "validation")
        }
        assert len(digits["train"]) == 6
        assert len(digits["validation"]) == 4
        assert not digits["train"] & digits["validation"]
        held_out.append(digits["validation"])
    assert held_out == [{"6", "7", "8", "9"}, {"2", "3", "4", "5"}]
    (path,) = (tmp_path / "0" / "validation" / "9").iterdir()
    assert pixels(path).shape == (16, 16)
    assert (pixels(path) == 255 - 150).all()


def test_masks_fit_their_images(tmp_path):
    write_masks(tmp_path, 48, 1)
    assert (tmp_path / "classes.txt").read_text().split() == ["background", "disc", "box"]
    for split, count in (("train", 6), ("validation", 4)):
        images, masks = (tmp_path / split / kind for kind in ("images", "masks"))
        assert names_below(images) == names_below(masks) == sorted(f"{index}.png" for index in range(count))
        for path in images.iterdir():
            mask = pixels(masks / path.name)
            assert pixels(path).shape == (*mask.shape, 3) == (48, 48, 3)
            assert set(np.unique(mask)) <= {0, 1, 2}


def test_boxes_and_outlines_lie_on_the_objects(tmp_path):
    write_objects(tmp_path, 64, 1)
    content = json.loads((tmp_path / "validation" / "_annotations.coco.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["disc", "box"]
    assert content["annotations"]
    for annotation in content["annotations"]:
        left, top, width, height = (round(value) for value in annotation["bbox"])
        image = pixels(tmp_path / "validation" / f"{annotation['image_id']}.png")
        inside = image[top : top + height, left : left + width].astype(int)
        is_object = inside[..., 2] - inside[..., 0] > 10  # held-out objects are blue, photographs gray
        assert is_object.any(axis=0).all()
        assert is_object.any(axis=1).all()
        mask = decode_mask(annotation["segmentation"], (64, 64), "scene")
        rows, cols = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        assert (rows[0], rows[-1] + 1, cols[0], cols[-1] + 1) == (top, top + height, left, left + width)
        assert is_object[mask[top : top + height, left : left + width] == 1].all()


def test_run_lengths_begin_outside():
    mask = torch.tensor([[True, False], [True, True]])
    assert labeled_folders._run_lengths(mask) == {"counts": [0, 2, 1, 1], "size": [2, 2]}
    assert labeled_folders._run_lengths(~mask) == {"counts": [2, 1, 1], "size": [2, 2]}
    assert labeled_folders._run_lengths(torch.ones(2, 3, dtype=torch.bool)) == {"counts": [0, 6], "size": [2, 3]}


def test_single_subjects_are_those_of_their_folders(tmp_path):
    write_single_subjects(tmp_path / "single", 64, 1)
    write_subjects(tmp_path / "all", 64, 1)
    for split in ("train", "validation"):
        lines = (tmp_path / "all" / split / "metadata.jsonl").read_text().splitlines()
        subjects = {row["file_name"]: row["labels"] for row in map(json.loads, lines)}
        expected = {(labels[0], name) for name, labels in subjects.items() if len(labels) == 1}
        found = {(path.parent.name, path.name) for path in (tmp_path / "single" / split).rglob("*.png")}
        assert found == expected
        assert found
        for label, name in found:
            assert (pixels(tmp_path / "single" / split / label / name) == pixels(tmp_path / "all" / split / name)).all()


def test_larger_objects_are_nearer(tmp_path):
    write_depths(tmp_path / "depths", 64, 1)
    write_objects(tmp_path / "objects", 64, 1)
    found = []
    for split, count in (("train", 6), ("validation", 4)):
        coco = json.loads((tmp_path / "objects" / split / "_annotations.coco.json").read_text())
        for index in range(count):
            image = tmp_path / "depths" / split / "images" / f"{index}.png"
            assert (pixels(image) == pixels(tmp_path / "objects" / split / f"{index}.png")).all()
            meters = np.load(tmp_path / "depths" / split / "depth" / f"{index}.npy")
            assert meters.shape == (64, 64)
            outside = np.ones((64, 64), bool)
            for object_ in (each for each in coco["annotations"] if each["image_id"] == index):
                mask = decode_mask(object_["segmentation"], (64, 64), "scene").astype(bool)
                outside &= ~mask
                (distance,) = set(meters[mask].tolist())
                found.append((max(object_["bbox"][2:]), distance))
            assert (meters[outside] == 8).all()
    assert len(found) > 5
    for side, distance in found:
        assert 64 / distance >= side - 1, "what is visible is no larger than the object"
    assert any(64 / distance <= side + 2 for side, distance in found)
