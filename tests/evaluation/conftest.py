"""A tiny model, and images of the demo's kind and of folders that their colors tell apart."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from h5py import File
from PIL import Image
from reference_cases import REFERENCE
from scipy.io import savemat
from tiny_adaptors import build_model_with_adaptors

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.conversion.text_tower import canonicalizing
from modeling_radio.demo.assets import DemoAssets
from modeling_radio.demo.evaluation_data import DemoData
from modeling_radio.demo.images import ClassificationSet, SegmentationSet
from modeling_radio.evaluation import data_nyu, data_pairs, public_sets
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.settings import TaskSettings


COLORS = torch.tensor([[250, 20, 20], [20, 250, 20]], dtype=torch.uint8)


@pytest.fixture
def tiny_model() -> RadioModel:
    return build_model_with_adaptors("teacher_b")


@pytest.fixture
def data() -> DemoData:
    """Six objects per set that their color tells apart, and scenes whose left half is red, right half green."""
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    masks = torch.zeros(4, 16, 16, dtype=torch.long)
    masks[:, :, 8:] = 1
    scenes = COLORS[masks].movedim(-1, 1).contiguous()
    return DemoData(
        "toy",
        DemoAssets((), (), (), ("red", "green"), (), ""),
        ClassificationSet(_painted(labels), labels, _painted(labels.flip(0)), labels.flip(0), ("red", "green")),
        SegmentationSet(scenes, masks, scenes, masks, ("left", "right")),
        _painted(labels),
    )


def _painted(labels: torch.Tensor) -> torch.Tensor:
    return COLORS[labels][:, :, None, None].expand(-1, -1, 16, 16).contiguous()


@pytest.fixture
def pixels(data) -> Callable[..., Evaluation]:
    """Build the evaluation of raw pixels on the toy data, or on other data, with settings."""

    def build(other=None, **settings) -> Evaluation:
        return Evaluation(RawPixels(8, 16), data if other is None else other, TaskSettings(**settings))

    return build


@pytest.fixture
def noisy_folders(tmp_path) -> Path:
    """Class folders with `train/` and `test/` above them; images of many shapes whose colors overlap."""
    for split, count in (("train", 14), ("test", 7)):
        for number, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / "noisy" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                random = np.random.default_rng([sum(split.encode()), number, index])
                color = np.roll([150, 110, 110], number) + random.normal(0, 25, 3)
                noise = random.normal(color, 60, (24, 20 + index, 3))
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "noisy"


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Images of several shapes, whose right part is green on red, with masks, in two splits."""
    for split, count in (("train", 6), ("val", 4)):
        for number in range(count):
            mask = np.zeros((24, 32 + 4 * number), np.uint8)
            mask[:, mask.shape[1] // 2 :] = 1
            mask[0] = 255
            noise = np.random.default_rng(number).normal(0, 40, (*mask.shape, 3))
            image = np.where(mask[..., None] == 1, [40, 200, 40], [200, 40, 40]) + noise
            for folder, array in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", mask)):
                path = tmp_path / "scenes" / split / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "scenes"


@pytest.fixture
def build_public_set(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Build the official folder of a public set with three train and two validation images, all that it has then."""

    def build(name: str) -> Path:
        public = replace(public_sets.public_sets()[name], counts={"train": 3, "validation": 2})
        monkeypatch.setitem(public_sets.public_sets(), name, public)
        ids, random = list(public.classes), np.random.default_rng(0)
        for split, files in {"train": "xyz", "validation": "ab"}.items():
            for letter in files:
                names = {"split": public.splits[split], "name": f"ulm/{letter}" if name == "cityscapes" else letter}
                target = random.choice([*ids[:2], ids[-1]], (24, 36)).astype(np.uint8)
                image = random.integers(0, 255, (24, 36, 3), np.uint8)
                for path, array in ((public.images, image), (public.targets, target)):
                    place = tmp_path / public.folder / path.format(**names)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(place)
            if public.lists:
                place = tmp_path / public.folder / public.lists.format(split=public.splits[split])
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("".join(f"{letter}\n" for letter in files))
        return tmp_path / public.folder

    return build


@pytest.fixture
def spair_folder(tmp_path, monkeypatch) -> Path:
    """SPair-71k with two classes, three images and two test pairs of each, which is all that it has then."""
    folder, random = tmp_path / "SPair-71k", np.random.default_rng(0)
    for category in ("cat", "dog"):
        for place, view in enumerate("abc"):
            files = {name: folder / name / category for name in ("JPEGImages", "ImageAnnotation")}
            for each in files.values():
                each.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(random.integers(0, 200, (30, 40, 3), np.uint8))
            image.save(files["JPEGImages"] / f"{view}.jpg")
            points = {"0": [10 + place, 5], "1": [3, 3] if view == "a" else None, "2": [30 + place, 15]}
            (files["ImageAnnotation"] / f"{view}.json").write_text(json.dumps({"kps": points, "filename": view}))
        for number, (first, second) in enumerate(("ab", "bc")):
            name = f"{number}-{first}-{second}:{category}"
            pair = {"filename": name, "category": category, "trg_bndbox": [5, 5, 25, 15], "trg_imsize": [40, 30, 3]}
            file = folder / "PairAnnotation" / "test" / f"{name}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(pair))
    monkeypatch.setattr(data_pairs, "SPAIR_PAIRS", 4)
    return folder


@pytest.fixture
def navi_folder(tmp_path, monkeypatch) -> Path:
    """NAVI with two objects and three images of each, turned by 20 degrees; half a meter before the camera."""
    for name in ("cup", "toy"):
        folder, entries = tmp_path / "navi_v1" / name / "wild_set", []
        for number in range(3):
            depth = np.zeros((128, 160), np.uint16)
            depth[32:96, 48:112] = 1311  # 655350 for a millimeter
            image = np.random.default_rng(number).integers(0, 255, (128, 160, 3), np.uint8)
            for kind, array, suffix in (("images", image, "jpg"), ("depth", depth, "png")):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / kind / f"{number:03d}.{suffix}")
            half = np.radians(20 * number) / 2
            camera = {"q": [np.cos(half), 0, np.sin(half), 0], "t": [0.0, 0.0, 500.0], "focal_length": 128.0}
            entries.append({"filename": f"{number:03d}.jpg", "image_size": [128, 160], "camera": camera})
        (folder / "annotations.json").write_text(json.dumps(entries))
    monkeypatch.setattr(data_pairs, "NAVI_IMAGES", 6)
    return tmp_path / "navi_v1"


@pytest.fixture
def nyu_folder(tmp_path, monkeypatch) -> Path:
    """NYU with four training frames, two of them damaged ones, and two test frames, which is all that it has then."""
    folder = tmp_path / "nyu"
    ys, xs = np.mgrid[:480, :640]
    depth, normals = (2 + ys / 480 + xs / 100).astype(np.float32), np.zeros((480, 640, 3)) + np.array([0, 0.6, 0.8])
    for place in ("geonet", "test"):
        (folder / place).mkdir(parents=True)
    for number in range(4):
        image = np.zeros((480, 640, 3)) + np.array([90, 91, 92]) - 2 * np.array(data_nyu.MEAN_COLOR) + 0.5
        savemat(folder / "geonet" / f"{number}.mat", {"img": image, "depth": depth, "norm": normals})
    with File(folder / "test" / "nyu_depth_v2_labeled.mat", "w") as file:
        colors = np.arange(3)[:, None] + np.arange(3)  # those of the second image are 1, 2, 3
        file["images"] = np.tile(colors[:, :, None, None].astype(np.uint8), (1, 1, 640, 480))
        file["rawDepths"] = np.stack([depth.T] * 3)
    np.save(folder / "test" / "all_normals.npy", np.stack([normals] * 3).astype(np.float32))
    (folder / "test" / "test_SN40.json").write_text(json.dumps([{"img": "2_rgb"}, {"img": "3_rgb"}]))
    for name, value in {"TRAIN_FRAMES": 4, "TEST_FRAMES": 2, "BAD_FRAMES": (3, 1)}.items():
        monkeypatch.setattr(data_nyu, name, value)
    return folder


@pytest.fixture
def reference() -> RadioModel:
    """The tiny reference checkpoint: eight blocks, adaptors for all three teachers."""
    return convert(REFERENCE / "c_radio_v4_tiny" / "checkpoint.pth.tar").eval()


@pytest.fixture
def build_text_folder(build_dual_encoder, word_tokenizer, tmp_path) -> Callable[[RadioModel], Path]:
    """Build a folder of a model with a text tower."""

    def build(model: RadioModel) -> Path:
        tower = build_dual_encoder("siglip", model.config.adaptor("siglip2-g").summary_dim)
        RadioForZeroShotImageClassification.from_parts(model, tower).save_pretrained(tmp_path / "texts")
        canonicalizing(word_tokenizer, 16).save_pretrained(tmp_path / "texts")
        return tmp_path / "texts"

    return build


@pytest.fixture
def text_folder(build_text_folder) -> Path:
    """A folder with a text tower."""
    adaptor = {"name": "siglip2-g", "summary_dim": 12, "feature_dim": 10, "hidden_size": 16}
    config = RadioConfig.from_preset("radio-test", adaptors=[adaptor], preferred_resolution=[32, 32])
    return build_text_folder(RadioModel(config).eval())


@pytest.fixture
def reference_folder(reference, build_text_folder) -> Path:
    """The tiny reference checkpoint with a text tower."""
    reference.config.preferred_resolution = [32, 32]
    return build_text_folder(reference)


@pytest.fixture(autouse=True)
def _apart(one_thread: None, own_datasets_cache: None) -> None:
    """Use one thread in all tests of this folder, and a cache of `datasets` of their own."""
