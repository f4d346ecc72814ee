"""Masks and depth maps are read or refused by name, and their scores are known."""

import logging
import math
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from PIL import Image
from tiny_tuning import build_task, mask_rows, picture

from modeling_radio.tuning.tasks.dense import DepthScore, DepthTask, SegmentationTask


def build(names=("a", "b", "c"), train=None, **options):
    rows = mask_rows([[0, 1]]) if train is None else train
    return build_task(SegmentationTask, "semantic-segmentation", names, rows, **options)


@pytest.fixture
def segmentation():
    return build()


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (np.zeros((40, 48)), "40 x 48 .* 36 x 48"),
        (np.full((36, 48), 3), "id 3"),
        (np.zeros((36, 48, 3)), "colors"),
        (None, "missing"),
    ],
)
def test_wrong_masks_are_refused(segmentation, mask, problem, tmp_path):
    target = mask if mask is None else Image.fromarray(mask.astype(np.uint8))
    with pytest.raises(ValueError, match=f"mask of image 7 .*{problem}"):
        segmentation.read({"image": picture(), "target": target}, "image 7")
    if target is not None:
        target.save(tmp_path / "wrong.png")
        with Image.open(tmp_path / "wrong.png") as opened, pytest.raises(ValueError, match=r"image 7 \(.*wrong\.png\)"):
            segmentation.read({"image": picture(), "target": opened}, "image 7")


def test_classes_of_masks_are_counted_where_none_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        task = build((), mask_rows([[0, 255]], [[4, 1]], [[255, 255]]))
    assert task.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert "5 classes, but no training mask has the ids 2, 3" in caplog.text
    ignoring = {"config": {"semantic_loss_ignore_index": 1}}
    assert len(build((), mask_rows([[0, 1]], [[0, 2]]), **ignoring).class_names) == 3


@pytest.mark.parametrize(
    ("names", "masks", "ids"),
    [
        ((), [[[0, 1]], [[2, 254]]], "0, 1, 2, 254"),
        *(((), [mask, mask], ids) for mask, ids in (([[0, 255]], "0, 255"), ([[0, 0]], "0"), ([[255, 255]], "255"))),
        (("background", "foreground"), [[[0, 255]]], "0, 255"),
        ((), [np.full((4, 4, 3), 128)], "colors"),
    ],
)
def test_ids_that_make_no_classes_are_refused(names, masks, ids):
    with pytest.raises(ValueError, match=f"{ids}[ ,]"):
        build(names, mask_rows(*masks))


def test_ids_outside_of_the_classes_are_refused_before_the_run():
    with pytest.raises(ValueError, match=r"training image 1 .*254"):
        build(train=mask_rows([[0, 1]], [[2, 254]])).prepare(Mock())
    table = Dataset.from_dict({"target": [[[0, 1, 300]]]})
    with pytest.raises(ValueError, match=r"training image 0 .*300"):
        build(train=table, class_weights="balanced").config_fields()
    model = SimpleNamespace(config=SimpleNamespace(segmentation_head="linear", patch_size=48))
    with pytest.raises(ValueError, match="`size`"):  # one patch, too few for batch norm
        build().prepare(model)


def test_the_ignored_id_is_the_models(segmentation):
    assert segmentation.config_fields()["semantic_loss_ignore_index"] == 255
    options = {"config": {"semantic_loss_ignore_index": 0}, "class_weights": "balanced"}
    task = build(train=mask_rows([[0, 0, 1, 2]]), **options)
    fields = task.config_fields()
    assert fields["semantic_loss_ignore_index"] == 0
    assert fields["class_weights"] == pytest.approx([1.0, 1.0, 1.0])  # the two zeros are not counted
    score = task.build_score()
    score.update(torch.tensor([[1, 1, 1, 2]]), torch.tensor([[0, 0, 1, 2]]))
    assert score.compute()["mean_iou"] == 1
    with pytest.raises(ValueError, match="id 255"):
        task.read({"image": picture(1, 2), "target": np.array([[0, 255]])}, "image 7")
    with pytest.raises(ValueError, match=r"semantic_loss_ignore_index` .*'no'"):
        build(config={"semantic_loss_ignore_index": "no"})


def test_drawings_leave_the_background_bare():
    task, image = build(("background", "cat")), torch.rand(8, 8, 3)
    mask = torch.zeros(8, 8, dtype=torch.long)
    mask[2:4] = 1
    ax = Figure().subplots()
    task.draw_truth(ax, image, mask)
    is_equal = np.isclose(ax.images[0].get_array(), image.numpy(), atol=1 / 255).all(axis=-1)
    assert (is_equal == (mask == 0).numpy()).all()
    assert [patch.get_label() for patch in task.legend([mask])] == ["background", "cat"]


def test_mean_iou_and_balanced_weights_by_hand(segmentation):
    logits = torch.tensor([[[[5.0, 5.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])  # class 0 everywhere
    labels = torch.tensor([[[0, 1], [0, 255]]])
    predictions, references = segmentation.compare(SimpleNamespace(logits=logits), {"labels": labels})
    assert predictions.shape == references.shape
    score = segmentation.build_score()
    score.update(predictions, references)
    result = score.compute()
    assert result["mean_iou"] == pytest.approx((2 / 3 + 0) / 2)  # class c occurs nowhere
    assert result["pixel_accuracy"] == pytest.approx(2 / 3)
    task = build(train=mask_rows([[0, 0, 0, 1, 1, 255]]), class_weights="balanced")
    assert task.config_fields()["class_weights"] == pytest.approx([5 / 6, 5 / 4, 1.0])


def build_depth(meters=1.0, **options):
    train = Dataset.from_dict({"target": [np.full((2, 2), meters).tolist()]})
    return build_task(DepthTask, "depth-estimation", train=train, **options)


@pytest.fixture
def read_depth(tmp_path):
    """Return a function that reads a file of the test's folder as the depth of image 7."""
    task = build_depth(data=tmp_path)
    return lambda name: task.read({"image": picture(), "target": str(tmp_path / name)}, "image 7")["depth"]


def test_depth_files(read_depth, tmp_path):
    meters = np.full((36, 48), 2.5, dtype=np.float32)
    meters[0, :3] = [0, np.nan, np.inf]
    np.save(tmp_path / "depth.npy", meters)
    Image.fromarray((np.nan_to_num(meters, posinf=0) * 1000).astype(np.uint16)).save(tmp_path / "depth.png")
    for name in ("depth.npy", "depth.png"):
        assert read_depth(name)[0, :4].tolist() == [0, 0, 0, 2.5]
    task = build_depth(depth_scale=500.0, data=tmp_path)
    depth = task.read({"image": picture(), "target": str(tmp_path / "depth.png")}, "image 0")["depth"]
    assert depth[0, :4].tolist() == [0, 0, 0, 5.0]


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


EMPTY = [np.full((36, 48), value) for value in (0.0, -2.5, math.nan, math.inf, -math.inf, 1e-50)]
NO_NUMBERS = [np.ones((36, 48)).astype(kind) for kind in (bool, np.complex64, "U4", object)]
DAMAGED = [
    b"",
    b"\x93NUMPY\x01\x00v",
    npy(b"{'descr': '<f4\x00"),
    npy(b"{'descr': '<f4', 'shape': (1, 2), \n"),
    npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }\n"),
]


@pytest.mark.parametrize("content", [*EMPTY, *NO_NUMBERS, *DAMAGED])
def test_files_without_depth_are_named(content, read_depth, tmp_path):
    for name in ("a.npy", "a.png") if isinstance(content, bytes) else ("a.npy",):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            np.save(tmp_path / name, content)
        with pytest.raises(ValueError, match=rf"image 7 \(.*{name}\)"):
            read_depth(name)


@pytest.mark.parametrize("shape", [(30, 48), (36, 48, 3)])
def test_depth_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="depth map of image 7"):
        build_depth().read({"image": picture(), "target": np.ones(shape, dtype=np.float32)}, "image 7")
    with pytest.raises(ValueError, match="training image 0"):  # before the run
        build_depth(0.0)


def test_depth_errors_by_hand_and_over_batches():
    score = DepthScore()
    score.update(torch.tensor([[[2.2, 2.0, 9.0]]]), torch.tensor([[[2.0, 4.0, 0.0]]]))  # the last has no depth
    result = score.compute()
    assert result["abs_rel"] == pytest.approx((0.1 + 0.5) / 2)
    assert result["rmse"] == pytest.approx(math.sqrt((0.04 + 4) / 2))
    assert result["delta1"] == pytest.approx(0.5)
    score.reset()
    assert all(value.isnan() for value in score.compute().values())  # not perfect
    pairs, whole = (torch.rand(2, 2, 3, 4) + 1, torch.rand(2, 2, 3, 4) + 1), DepthScore()
    whole.update(*(depths.flatten(0, 1) for depths in pairs))
    for predictions, references in zip(*pairs, strict=True):
        score.update(predictions, references)
    expected = {name: value.item() for name, value in whole.compute().items()}
    assert {name: value.item() for name, value in score.compute().items()} == pytest.approx(expected)
