import contextlib
import os
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.image_folder import ImageFolder
from training.data.training_images import build_images


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
    assert len(images) == 18
    assert images[3].shape == (3, 32, 32)
    assert images[3].dtype == torch.uint8
    assert all(torch.equal(images[i], again[i]) for i in range(18))
    assert not torch.equal(again[0], again[18])  # the same file a second time, cropped differently
    assert not torch.equal(images[0], build_images(str(folder), size=32, seed=2)[0])


def test_held_out_files_are_not_trained_on(folder):
    train, held_out = (ImageFolder(folder, size=32, split=split) for split in ("train", "held_out"))
    assert len(held_out) == 2
    assert not set(train.paths) & set(held_out.paths)
    assert len(train.paths) + len(held_out.paths) == 20


def test_all_types_that_pillow_opens_are_images(folder):
    Image.new("RGB", (40, 64)).save(folder / "camera.JFIF", format="jpeg")
    Image.new("RGB", (40, 64)).save(folder / "film.jp2")
    paths = [*ImageFolder(folder, size=32).paths, *ImageFolder(folder, size=32, split="held_out").paths]
    assert {"camera.JFIF", "film.jp2"} <= {path.name for path in paths}


def test_unreadable_and_tiny_images_are_skipped_counted_and_named(folder, caplog):
    (folder / "text.jpg").write_text("not a picture")
    Image.new("RGB", (500, 8)).save(folder / "thin.png")
    images = ImageFolder(folder, size=32)
    assert len(images.skipped) == 2
    assert len(images.paths) == 18
    assert "text.jpg: unreadable" in caplog.text
    assert "thin.png: too small: 500 x 8 px" in caplog.text
    assert "skipped 2 of 22" in caplog.text


def test_an_image_that_breaks_while_decoding_is_replaced_by_the_next(folder, caplog):
    images = ImageFolder(folder, size=32)
    whole = images.paths[0].read_bytes()
    images.paths[0].write_bytes(whole[: len(whole) // 2])
    assert images[0].shape == (3, 32, 32)
    assert len(images.skipped) == 1
    assert f"{images.paths[0]}: unreadable" in caplog.text


@pytest.mark.parametrize("content", [None, "text.jpg"])
def test_a_folder_without_images_is_one_clear_error(tmp_path, content):
    if content:
        (tmp_path / content).write_text("not a picture")
    with pytest.raises(ValueError, match="has no usable image") as error:
        build_images(str(tmp_path), size=32)
    assert "\n" not in str(error.value)


def test_other_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'org/images' is neither 'demo' nor 'demo-pypi' nor an image folder"):
        build_images("org/images", size=32)
    Image.new("RGB", (64, 64)).save(tmp_path / "only.png")
    with pytest.raises(ValueError, match="one image only"):
        build_images(str(tmp_path), size=32, split="held_out")


def test_fingerprint_follows_names_and_contents_wherever_they_lie(folder):
    def fingerprint() -> str:
        return ImageFolder(folder).fingerprint()

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    path = ImageFolder(folder).paths[0]
    os.utime(path, ns=(0, 1))
    assert fingerprint() == seen[0]
    content = path.read_bytes()
    for other in (content + b"x", content[:-1] + b"y", content[:-9] + b"z" + content[-8:]):
        path.write_bytes(other)
        seen.append(fingerprint())
    assert len(set(seen)) == 4
    assert len({text[text.index("names") : text.index("state")] for text in seen}) == 1
    elsewhere = folder.rename(folder.with_name("moved"))
    assert ImageFolder(elsewhere).fingerprint() == seen[-1]


@pytest.fixture
def odd_things(folder):
    """What has an image's suffix but is no file that ends: opening the first one waits for a writer."""
    os.mkfifo(folder / "pipe.png")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    (folder / "pipe-too.png").symlink_to(folder / "pipe.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        working_directory = os.getcwd()
        os.chdir(folder)  # the path of a socket must be short
        listener.bind("socket.png")
        os.chdir(working_directory)
        yield ["device.jpg", "folder.png", "pipe-too.png", "pipe.png", "socket.png"]


def test_what_is_no_file_is_skipped_and_named_but_never_opened(folder, odd_things, caplog):
    images = ImageFolder(folder, size=32)
    assert len(images.paths) == 18
    assert len(images.skipped) == 6
    for name in odd_things:
        assert f"{folder / name}: no file with content, but a folder, pipe, socket or device" in caplog.text
    assert f"{folder / 'dangling.png'}: unreadable: " in caplog.text
    assert images[0].shape == (3, 32, 32)


def test_a_file_that_becomes_a_pipe_is_replaced_by_the_next(folder):
    images = ImageFolder(folder, size=32)
    images.paths[0].unlink()
    os.mkfifo(images.paths[0])
    assert images[0].shape == (3, 32, 32)
    assert len(images.skipped) == 1
