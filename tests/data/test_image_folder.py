import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_radio.data.image_folder import MIN_IMAGES_PER_SHARD, ImageFolder, find_shards
from modeling_radio.data.training_images import build_images


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / f"sub{index % 2}" / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(path)
    return tmp_path


def test_items_are_deterministic_crops_of_all_sub_folders(folder):
    images = build_images(str(folder), size=32, seed=1)
    again = build_images(str(folder), size=32, seed=1, num_images=50)
    assert (len(images), images[3].shape, images[3].dtype) == (18, (3, 32, 32), torch.uint8)
    assert all(torch.equal(images[i], again[i]) for i in range(18))
    assert not torch.equal(again[0], again[18])  # the same file a second time, cropped differently
    assert not torch.equal(images[0], build_images(str(folder), size=32, seed=2)[0])
    held_out = ImageFolder(folder, size=32, split="held_out")
    assert len(held_out) == 2
    assert len({*images.paths, *held_out.paths}) == 20


def test_unusable_files_are_skipped_counted_and_named(folder, caplog):
    Image.new("RGB", (40, 64)).save(folder / "camera.JFIF", format="jpeg")
    Image.new("RGB", (40, 64)).save(folder / "film.jp2")
    (folder / "text.jpg").write_text("not a picture")
    for name in ("a.heic", "b.HEIC", "LICENSE", ".hidden"):
        (folder / name).touch()
    Image.new("RGB", (500, 8)).save(folder / "thin.png")
    images = ImageFolder(folder, size=32)
    paths = [*images.paths, *ImageFolder(folder, size=32, split="held_out").paths]
    assert {"camera.JFIF", "film.jp2"} <= {path.name for path in paths}
    assert (len(images.skipped), len(paths)) == (2, 22)
    assert "text.jpg: unreadable" in caplog.text
    assert "thin.png: too small: 500 x 8 px" in caplog.text
    assert "skipped 2 of 24" in caplog.text
    assert caplog.text.count("left out files of kinds that are not read here: 2 .heic, 1 LICENSE\n") == 1


@pytest.mark.parametrize("becomes_pipe", [False, True])
def test_an_image_that_breaks_later_is_replaced_by_the_next(folder, becomes_pipe, caplog):
    images = ImageFolder(folder, size=32)
    path = images.paths[0]
    whole = path.read_bytes()
    path.unlink()
    if becomes_pipe:
        os.mkfifo(path)
    else:
        path.write_bytes(whole[: len(whole) // 2])
    assert images[0].shape == (3, 32, 32)
    assert len(images.skipped) == 1
    assert f"skipping image {path}: " in caplog.text


def test_sources_without_a_usable_image_are_refused(tmp_path):
    for content in (None, "not a picture"):
        if content:
            (tmp_path / "text.jpg").write_text(content)
        with pytest.raises(ValueError, match="has no usable image") as error:
            build_images(str(tmp_path), size=32)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="'org/images'"):
        build_images("org/images", size=32)
    Image.new("RGB", (64, 64)).save(tmp_path / "only.png")
    with pytest.raises(ValueError, match="split 'held_out'"):
        build_images(str(tmp_path), size=32, split="held_out")


def test_pipes_and_devices_are_skipped_and_named_but_never_opened(folder, caplog):
    """Opening the first one would wait for a writer."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    for name, target in (("device.jpg", "/dev/zero"), ("too.png", folder / "pipe.png"), ("gone.png", folder / "no")):
        (folder / name).symlink_to(target)
    images = ImageFolder(folder, size=32)
    assert (len(images.paths), len(images.skipped)) == (18, 5)
    for name in ("device.jpg", "folder.png", "too.png", "pipe.png"):
        assert f"{folder / name}: no file with content, but a folder, pipe, socket or device" in caplog.text
    assert f"{folder / 'gone.png'}: unreadable: " in caplog.text


def fill(folder: Path, names: list[str], num_images: int) -> Path:
    for name in [*names, *(f"pictures/{number}.jfif" for number in range(num_images))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "num_images", "read"),
    [
        ([], 0, []),
        ([], 1, []),
        (["b.tar", "a/c.tar"], 0, ["a/c.tar", "b.tar"]),
        (["data/train-00000-of-00001.parquet"], 3, ["data/train-00000-of-00001.parquet"]),
        (["val_07.tar", "b.tar", "index.parquet"], 3, ["b.tar", "val_07.tar"]),
        (["VOCtrainval.tar"], MIN_IMAGES_PER_SHARD, []),
        (["metadata.parquet", ".cache/train-0.tar", "__MACOSX/a.tar", "._b.tar"], 1, []),
    ],
)
def test_shards_of_a_folder(tmp_path: Path, names: list[str], num_images: int, read: list[str]) -> None:
    folder = fill(tmp_path, names, num_images)
    assert find_shards(folder) == [folder / name for name in read]


@pytest.mark.parametrize(
    ("names", "num_images"),
    [
        (["train/a.parquet"], 1),  # as a class called "train"
        (["VOCtrainval.tar"], MIN_IMAGES_PER_SHARD - 1),
        (["train-00000-of-00001.parquet"], MIN_IMAGES_PER_SHARD),
        (["00000.tar", "00001.parquet"], 0),
        (["train-0.tar", "train-1.parquet"], 0),
    ],
)
def test_folders_of_several_kinds_are_refused(tmp_path: Path, names: list[str], num_images: int) -> None:
    with pytest.raises(ValueError, match="several kinds of files: ") as error:
        find_shards(fill(tmp_path, names, num_images))
    assert all(f"({name})" in str(error.value) and f"/**/*{Path(name).suffix}'" in str(error.value) for name in names)
    assert ("to read the images" in str(error.value)) == (num_images > 0)
