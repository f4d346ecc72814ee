"""Tasks read rows, refuse wrong ones by name, and score what is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from training.finetuning.class_weights import balanced_weights
from training.finetuning.classification import ClassificationTask
from training.finetuning.depth import DepthScore, DepthTask
from training.finetuning.detection import NO_OBJECT, DetectionTask
from training.finetuning.segmentation import SegmentationTask
from training.finetuning.settings import FinetuneSettings
from training.finetuning.sources import LabelledImages
from training.finetuning.task import Examples


def build(task_class, task, names=("a", "b", "c"), train=None, **options):
    settings = FinetuneSettings("checkpoint", task, "data", output="output", size=(32, 48), **options)
    return task_class(settings, LabelledImages(train, train, names, ""))


def picture(height=36, width=48):
    return Image.fromarray(np.full((height, width, 3), 100, dtype=np.uint8))


@pytest.fixture
def segmentation():
    return build(SegmentationTask, "semantic-segmentation")


@pytest.fixture
def detection():
    return build(DetectionTask, "object-detection")


@pytest.fixture
def depth():
    return build(DepthTask, "depth-estimation")


def test_images_of_any_mode_become_rgb(segmentation):
    for mode in ("L", "RGBA", "P", "I;16"):
        image = segmentation.read_image(picture().convert("L").convert(mode), "image 0")
        assert isinstance(image, tv_tensors.Image)
        assert (image.shape, image.dtype) == ((3, 36, 48), torch.uint8)


def test_ids_of_masks_are_kept_and_255_ignored(segmentation):
    ids = np.array([[0, 1, 2, 255]] * 4, dtype=np.uint8)
    sample = segmentation.read({"image": picture(4, 4), "target": Image.fromarray(ids)}, "image 0")
    assert sample["mask"].tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((40, 48)), r"mask of image 7 has 40 x 48 pixels but its image 36 x 48 \(height x width\)"),
        (np.full((36, 48), 3), "mask of image 7 has the id 3, but there are 3 classes .ids 0 to 2; 255 is ignored"),
        (np.zeros((36, 48, 3)), "mask of image 7 has colours"),
    ],
)
def test_wrong_masks(segmentation, mask, message):
    with pytest.raises(ValueError, match=message):
        segmentation.read({"image": picture(), "target": Image.fromarray(mask.astype(np.uint8))}, "image 7")


def test_classes_of_masks_are_counted_where_none_are_named():
    rows = [{"target": np.array([[0, 255]])}, {"target": np.array([[4, 1]])}, {"target": np.array([[255, 255]])}]
    task = build(SegmentationTask, "semantic-segmentation", names=(), train=rows)
    assert task.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_mean_iou_by_hand(segmentation):
    logits = torch.tensor([[[[5.0, 5.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])  # class 0 everywhere
    labels = torch.tensor([[[0, 1], [0, 255]]])
    predictions, references = segmentation.compare(SimpleNamespace(logits=logits), {"labels": labels})
    assert predictions.shape == references.shape
    score = segmentation.build_score()
    score.update(predictions, references)
    result = score.compute()
    assert result["mean_iou"] == pytest.approx((2 / 3 + 0) / 2)  # class c occurs nowhere
    assert result["pixel_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("box_format", "box"), [("xywh", [4, 6, 20, 12]), ("xyxy", [4, 6, 24, 18]), ("cxcywh", [14, 12, 20, 12])]
)
def test_box_formats(box_format, box):
    task = build(DetectionTask, "object-detection", box_format=box_format)
    sample = task.read({"image": picture(), "target": {"bbox": [box], "category": [2]}}, "image 0")
    assert sample["boxes"].tolist() == [[4, 6, 24, 18]]
    labels = task.labels(sample)
    torch.testing.assert_close(labels["boxes"], torch.tensor([[14 / 48, 12 / 36, 20 / 48, 12 / 36]]))
    assert labels["class_labels"].tolist() == [2]


def test_objects_as_lists_of_objects(detection):
    target = [{"bbox": [0, 0, 4, 4], "category": 1}, {"bbox": [1, 1, 2, 2], "category": 0}]
    assert detection.read({"image": picture(), "target": target}, "image 0")["labels"].tolist() == [1, 0]
    assert detection.read({"image": picture(), "target": []}, "image 0")["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"bbox": [[0, 0, 4, 4]], "category": [3]}, r"A box of image 7 has the class 3, but there are 3 classes"),
        ({"bbox": [[50, 0, 4, 4]], "category": [0]}, "A box of image 7 lies outside its 36 x 48 pixels.*`box_format`"),
    ],
)
def test_wrong_boxes(detection, target, message):
    with pytest.raises(ValueError, match=message):
        detection.read({"image": picture(), "target": target}, "image 7")


def detection_outputs(boxes, logits):
    return SimpleNamespace(pred_boxes=torch.tensor([boxes]), logits=torch.tensor([logits]))


def test_average_precision_by_hand(detection):
    truth = {"class_labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.8, 0.5, 0.2, 0.4]])}
    # The first query is right; the second has the right box of the second object but another class.
    outputs = detection_outputs(
        [[0.25, 0.5, 0.5, 1.0], [0.8, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]],
        [[-9.0, 5.0, -9.0], [-9.0, -9.0, 4.0], [-9.0, -9.0, -9.0]],
    )
    predictions, references = detection.compare(outputs, {"labels": [truth]})
    assert predictions.shape == references.shape == (1, 3, 6)
    assert references[0, 2, 4] == NO_OBJECT
    score = detection.build_score()
    score.update(predictions, references)
    assert score.compute()["map"] == pytest.approx(0.5)  # class 1 found, class 0 not
    score.reset()
    empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    score.update(*detection.compare(outputs, {"labels": [empty]}))
    assert "map" not in score.compute()  # nothing to find, nothing to score


def test_depth_files(depth, tmp_path):
    metres = np.full((36, 48), 2.5, dtype=np.float32)
    metres[0, :3] = [0, np.nan, np.inf]
    np.save(tmp_path / "depth.npy", metres)
    Image.fromarray((np.nan_to_num(metres, posinf=0) * 1000).astype(np.uint16)).save(tmp_path / "depth.png")
    for name in ("depth.npy", "depth.png"):
        sample = depth.read({"image": picture(), "target": str(tmp_path / name)}, "image 0")
        assert sample["depth"][0, :4].tolist() == [0, 0, 0, 2.5]


def test_depth_scale(tmp_path):
    Image.fromarray(np.full((36, 48), 512, dtype=np.uint16)).save(tmp_path / "kitti.png")
    task = build(DepthTask, "depth-estimation", depth_scale=256.0)
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


def test_balanced_weights():
    assert balanced_weights(torch.tensor([30, 10, 0])) == pytest.approx([40 / 60, 2.0, 1.0])


def test_class_weights_reach_the_configuration():
    task = build(ClassificationTask, "image-classification", class_weights=(1.0, 2.0, 3.0))
    assert task.config_fields()["class_weights"] == [1.0, 2.0, 3.0]
    rows = [{"target": np.array([[0, 0, 0, 1, 1, 255]])}]

    class Rows(list):
        def select(self, indices):
            return [self[index] for index in indices]

    task = build(SegmentationTask, "semantic-segmentation", train=Rows(rows), class_weights="balanced")
    assert task.config_fields()["class_weights"] == pytest.approx([5 / 6, 5 / 4, 1.0])


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    task = build(ClassificationTask, "image-classification")
    rows = [{"image": picture(), "target": 1}] * 3

    def draw(index, seed=0, epoch=0):
        examples = Examples(rows, task, RandomShift(), seed, "image")
        examples.epoch = epoch
        return examples[index]["pixel_values"].sum().item()

    before = torch.get_rng_state()
    assert draw(0) == draw(0)
    assert len({draw(0), draw(1), draw(0, seed=1), draw(0, epoch=1)}) == 4
    assert torch.equal(torch.get_rng_state(), before)


class RandomShift(torch.nn.Module):
    def forward(self, sample):
        return {**sample, "image": tv_tensors.Image(sample["image"] / 255 + torch.rand(1))}
