"""Tiny folders of labeled images, one for each layout; a tiny backbone; and what keeps runs on them short and apart."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.conversion.text_tower import canonicalizing


HEIGHT, WIDTH = 36, 48
RECTANGLE = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
RECTANGLE[10:18, 12:30] = 1


@pytest.fixture
def own_datasets_cache(monkeypatch, tmp_path) -> None:
    """Let `datasets` cache below a folder of the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def one_figure_image(monkeypatch) -> None:
    """Let runs draw one validation image: drawing several takes half the time of a tiny run."""
    draw_one_image(monkeypatch)


@pytest.fixture(autouse=True)
def _short_and_apart(own_datasets_cache, one_figure_image) -> None:
    """Fixtures of every test."""


def draw_one_image(patch: pytest.MonkeyPatch) -> None:
    from modeling_radio.tuning import error_analysis, trainer

    patch.setattr(error_analysis, "NUM_SHOWN", 1)
    patch.setattr(trainer, "predict_examples", partial(trainer.predict_examples, count=1))


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The folder of a tiny backbone for images of 32 x 48 pixels."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = RadioConfig.from_preset("radio-test", preferred_resolution=[32, 48])
    RadioModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def zero_shot_folder(tmp_path, build_dual_encoder, word_tokenizer):
    """A folder with a text tower, whose texts live in the space of an adaptor."""
    torch.manual_seed(0)
    adaptor = {"name": "siglip2-g", "summary_dim": 16, "feature_dim": 16, "hidden_size": 16}
    radio = RadioModel(RadioConfig.from_preset("radio-test", preferred_resolution=[32, 32], adaptors=[adaptor])).eval()
    model = RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip", 16))
    folder = tmp_path / "zero-shot"
    model.save_pretrained(folder)
    canonicalizing(word_tokenizer, 16).save_pretrained(folder)
    RadioImageProcessor.from_model_config(radio.config).save_pretrained(folder)
    return folder


def save_image(path, seed):
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
        save_image(tmp_path / "pets" / ("cat" if number % 2 else "dog") / f"{number}.png", number)
    return tmp_path / "pets"


@pytest.fixture
def voc_folder(tmp_path):
    """Four images with masks of three classes and a border of 255."""
    for number in range(4):
        save_image(tmp_path / "voc" / "images" / f"{number}.png", number)
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
        save_image(tmp_path / "depth" / "images" / f"{number}.png", number)
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
        save_image(tmp_path / "coco" / "images" / f"{number}.png", number)
    (tmp_path / "coco" / "annotations.json").write_text(json.dumps(coco_content))
    return tmp_path / "coco"


def rectangle_image() -> Image.Image:
    """Return a red rectangle on blue."""
    return Image.fromarray(np.where(RECTANGLE[..., None], [250, 0, 0], [0, 0, 250]).astype(np.uint8))


def run_lengths(mask: np.ndarray, *, compressed: bool) -> dict:
    """Return a mask as COCO's run lengths."""
    if compressed:
        from pycocotools import mask as coco_mask

        encoded = coco_mask.encode(np.asfortranarray(mask))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    ends = np.flatnonzero(np.diff(mask.flatten(order="F"))) + 1
    counts = np.diff([0, *ends, mask.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if mask[0, 0] else counts}


def save_outlines(folder, count):
    """Write images with a rectangle each, in Roboflow's layout; the last has no object."""
    folder.mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "box"}, {"id": 5, "name": "sheet"}]}
    for number in range(count):
        rectangle_image().save(folder / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png"})
        outline = [[12, 10, 30, 10, 30, 18, 12, 18]] if number else run_lengths(RECTANGLE, compressed=False)
        annotation = {"id": number, "image_id": number, "category_id": 3, "bbox": [12, 10, 18, 8]}
        if number < count - 1:
            content["annotations"].append({**annotation, "segmentation": outline})
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture
def outlines_folder(tmp_path):
    """Four training and two validation images with outlines."""
    save_outlines(tmp_path / "outlines" / "train", 4)
    save_outlines(tmp_path / "outlines" / "valid", 2)
    return tmp_path / "outlines"
