"""Tiny folders of labeled images, one for each layout."""

import json

import numpy as np
import pytest
from PIL import Image


HEIGHT, WIDTH = 36, 48


def save_picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_palette_mask(path, ids):
    """Write class ids as a PNG with a palette, as VOC has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids.astype(np.uint8), "L").convert("P")
    picture.putdata(ids.flatten().tolist())
    picture.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
    picture.save(path)


@pytest.fixture
def class_folders(tmp_path):
    """Six images in two class sub-folders."""
    for number in range(6):
        save_picture(tmp_path / "pets" / ("cat" if number % 2 else "dog") / f"{number}.png", number)
    return tmp_path / "pets"


@pytest.fixture
def voc_folder(tmp_path):
    """Four images with masks of three classes and a border of 255."""
    for number in range(4):
        save_picture(tmp_path / "voc" / "images" / f"{number}.png", number)
        ids = np.full((HEIGHT, WIDTH), number % 3)
        ids[:, 0] = 255
        ids[0, 1] = 2
        save_palette_mask(tmp_path / "voc" / "masks" / f"{number}.png", ids)
    (tmp_path / "voc" / "classes.txt").write_text("ground\nplant\nsky\n")
    return tmp_path / "voc"


@pytest.fixture
def depth_folder(tmp_path):
    """Four images with depth, half as 16-bit PNG in millimeters, half as meters in `.npy`."""
    for number in range(4):
        save_picture(tmp_path / "depth" / "images" / f"{number}.png", number)
        meters = np.full((HEIGHT, WIDTH), 1.5 + number, dtype=np.float32)
        meters[0, 0] = 0
        folder = tmp_path / "depth" / "depth"
        folder.mkdir(exist_ok=True)
        if number % 2:
            np.save(folder / f"{number}.npy", meters)
        else:
            Image.fromarray((meters * 1000).astype(np.uint16)).save(folder / f"{number}.png")
    return tmp_path / "depth"


@pytest.fixture
def coco_content():
    """Three images; categories with gaps in their ids, one image without objects, one crowd."""
    return {
        "images": [{"id": 10 + number, "file_name": f"{number}.png"} for number in range(3)],
        "categories": [{"id": 9, "name": "person"}, {"id": 4, "name": "bus"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 9, "bbox": [4, 6, 20, 12], "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 4, "bbox": [0, 0, 48, 36]},
            {"id": 3, "image_id": 12, "category_id": 4, "bbox": [10, 10, 8, 8]},
            {"id": 4, "image_id": 12, "category_id": 9, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        ],
    }


@pytest.fixture
def coco_folder(tmp_path, coco_content):
    """`annotations.json` with `images/`."""
    for number in range(3):
        save_picture(tmp_path / "coco" / "images" / f"{number}.png", number)
    (tmp_path / "coco" / "annotations.json").write_text(json.dumps(coco_content))
    return tmp_path / "coco"
