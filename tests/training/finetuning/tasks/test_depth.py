"""Depth maps are read in meters, wrong ones are refused by name, and errors are known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tuning import build_task, picture

from training.finetuning.tasks.depth import DepthScore, DepthTask


@pytest.fixture
def depth():
    return build_task(DepthTask, "depth-estimation")


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
    task = build_task(DepthTask, "depth-estimation", depth_scale=256.0)
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
    assert {float(value) for value in score.compute().values()} == {0.0}
