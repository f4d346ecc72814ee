"""Depth maps are read in meters, wrong ones are refused by name, and errors are known."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_tuning import build_task, picture

from training.finetuning.tasks.dense import DepthScore, DepthTask


def maps(*targets):
    return Dataset.from_dict({"target": [np.asarray(target).tolist() for target in targets]})


def build(train=None, **options):
    return build_task(DepthTask, "depth-estimation", train=train or maps(np.ones((2, 2))), **options)


@pytest.fixture
def depth(tmp_path):
    return build(data=tmp_path)


def test_depth_files(depth, tmp_path):
    meters = np.full((36, 48), 2.5, dtype=np.float32)
    meters[0, :3] = [0, np.nan, np.inf]
    np.save(tmp_path / "depth.npy", meters)
    Image.fromarray((np.nan_to_num(meters, posinf=0) * 1000).astype(np.uint16)).save(tmp_path / "depth.png")
    for name in ("depth.npy", "depth.png"):
        sample = depth.read({"image": picture(), "target": str(tmp_path / name)}, "image 0")
        assert sample["depth"][0, :4].tolist() == [0, 0, 0, 2.5]


def test_depth_scale(tmp_path):
    Image.fromarray(np.full((36, 48), 512, dtype=np.uint16)).save(tmp_path / "kitti.png")
    task = build(depth_scale=256.0, data=tmp_path)
    sample = task.read({"image": picture(), "target": str(tmp_path / "kitti.png")}, "image 0")
    assert sample["depth"].unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((30, 48), "depth map of image 7 has 30 x 48 pixels but its image 36 x 48"),
        ((36, 48, 3), "depth map of image 7"),
    ],
)
def test_wrong_depth(depth, shape, message):
    with pytest.raises(ValueError, match=message):
        depth.read({"image": picture(), "target": np.ones(shape, dtype=np.float32)}, "image 7")


@pytest.mark.parametrize("value", [0.0, -2.5, math.nan, math.inf, -math.inf, 1e-50])
def test_depth_without_a_valid_pixel(depth, value, tmp_path):
    np.save(tmp_path / "empty.npy", np.full((36, 48), value))
    message = r"of image 7 \(.*empty\.npy\) has no pixel with a depth, .*: correct it, or leave the image out"
    with pytest.raises(ValueError, match=message):
        depth.read({"image": picture(), "target": str(tmp_path / "empty.npy")}, "image 7")


@pytest.mark.parametrize("kind", [bool, np.complex64, "U4", object])
def test_depth_that_is_no_number(depth, kind, tmp_path):
    np.save(tmp_path / "odd.npy", np.ones((36, 48)).astype(kind))
    message = r"depth map of image 7 \(.*odd\.npy\) (must have whole or floating-point numbers, got |cannot be read: )"
    with pytest.raises(ValueError, match=message):
        depth.read({"image": picture(), "target": str(tmp_path / "odd.npy")}, "image 7")


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b""),
        ("a.npy", b"\x93NUMPY\x01\x00v"),
        ("a.npy", npy(b"{'descr': '<f4\x00")),
        ("a.npy", npy(b"{'descr': '<f4', 'shape': (1, 2), \n")),
        ("a.npy", npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }\n")),
        ("a.png", b"no picture"),
    ],
)
def test_broken_depth_files_are_named(depth, name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"depth map of image 7 \(.*{name}\) cannot be read: "):
        depth.read({"image": picture(), "target": str(tmp_path / name)}, "image 7")


def test_splits_of_empty_depth_are_refused_before_training():
    with pytest.raises(ValueError, match="depth map of training image 0 has no pixel with a depth"):
        build(train=maps(np.zeros((2, 2))))


def test_depth_errors_by_hand():
    score = DepthScore()
    score.update(torch.tensor([[[2.2, 2.0, 9.0]]]), torch.tensor([[[2.0, 4.0, 0.0]]]))  # the last has no depth
    result = score.compute()
    assert result["abs_rel"] == pytest.approx((0.1 + 0.5) / 2)
    assert result["rmse"] == pytest.approx(math.sqrt((0.04 + 4) / 2))
    assert result["delta1"] == pytest.approx(0.5)


def test_depth_of_batches_adds_up_and_starts_anew():
    score, pairs = DepthScore(), (torch.rand(2, 2, 3, 4) + 1, torch.rand(2, 2, 3, 4) + 1)
    whole = DepthScore()
    whole.update(*(depths.flatten(0, 1) for depths in pairs))
    for predictions, references in zip(*pairs, strict=True):
        score.update(predictions, references)
    expected = {name: value.item() for name, value in whole.compute().items()}
    assert {name: value.item() for name, value in score.compute().items()} == pytest.approx(expected)
    score.reset()
    assert all(value.isnan() for value in score.compute().values())  # not perfect
