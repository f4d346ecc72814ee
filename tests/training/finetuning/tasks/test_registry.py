"""Tasks read rows, refuse wrong ones by name, and score what is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from matplotlib.figure import Figure
from PIL import Image
from torchvision import tv_tensors

from training.finetuning.data.sources import LabeledImages
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.base import Examples
from training.finetuning.tasks.class_weights import balanced_weights
from training.finetuning.tasks.classification import ClassificationTask, MultiLabelTask, RegressionTask
from training.finetuning.tasks.depth import DepthScore, DepthTask
from training.finetuning.tasks.segmentation import SegmentationTask


def build(task_class, task, names=("a", "b", "c"), train=None, **options):
    settings = FinetuneSettings(
        checkpoint="checkpoint", task=task, data="data", output="output", size=(32, 48), **options
    )
    return task_class(settings, LabeledImages(train, train, names, ""))


def mask_rows(*masks):
    """Return a table of masks alone."""
    from_arrays = [Image.fromarray(np.array(mask, dtype=np.uint8)) for mask in masks]
    return Dataset.from_dict({"target": from_arrays}, features=Features({"target": ImageFeature()}))


def picture(height=36, width=48):
    return Image.fromarray(np.full((height, width, 3), 100, dtype=np.uint8))


@pytest.fixture
def segmentation():
    return build(SegmentationTask, "semantic-segmentation", train=mask_rows([[0, 1]]))


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
        (np.zeros((36, 48, 3)), "mask of image 7 has colors"),
    ],
)
def test_wrong_masks(segmentation, mask, message):
    with pytest.raises(ValueError, match=message):
        segmentation.read({"image": picture(), "target": Image.fromarray(mask.astype(np.uint8))}, "image 7")


def test_missing_mask(segmentation):
    with pytest.raises(ValueError, match="mask of image 7 is missing: give it one, or leave the image out"):
        segmentation.read({"image": picture(), "target": None}, "image 7")


def test_wrong_mask_is_named_by_its_file(segmentation, tmp_path):
    Image.fromarray(np.full((36, 48), 9, dtype=np.uint8)).save(tmp_path / "wrong.png")
    with Image.open(tmp_path / "wrong.png") as mask, pytest.raises(ValueError, match=r"image 7 \(.*wrong.png\) has"):
        segmentation.read({"image": picture(), "target": mask}, "image 7")


def test_classes_of_masks_are_counted_where_none_are_named():
    rows = mask_rows([[0, 255]], [[4, 1]], [[255, 255]])
    task = build(SegmentationTask, "semantic-segmentation", names=(), train=rows)
    assert task.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_colors_are_not_taken_for_class_ids():
    rows = mask_rows(np.full((4, 4, 3), 128))
    with pytest.raises(ValueError, match=r"mask of training image 0 has colors, shape \(4, 4, 3\)"):
        build(SegmentationTask, "semantic-segmentation", names=(), train=rows)


@pytest.mark.parametrize("names", [(), ("background", "foreground")])
@pytest.mark.parametrize(("mask", "ids"), [([[0, 255]], "0, 255"), ([[0, 0]], "0"), ([[255, 255]], "255")])
def test_masks_of_one_class(names, mask, ids):
    with pytest.raises(ValueError, match=rf"have the ids {ids} alone, and 255 is ignored.*1 \(not 255\)"):
        build(SegmentationTask, "semantic-segmentation", names=names, train=mask_rows(mask, mask))


def test_two_classes_may_be_in_different_masks():
    rows = mask_rows([[0, 0]], [[1, 1]])
    assert len(build(SegmentationTask, "semantic-segmentation", names=(), train=rows).class_names) == 2


def test_ignored_id_is_the_models(segmentation):
    assert segmentation.config_fields()["semantic_loss_ignore_index"] == 255
    options = {"config": {"semantic_loss_ignore_index": 0}, "class_weights": "balanced"}
    task = build(SegmentationTask, "semantic-segmentation", train=mask_rows([[0, 0, 1, 2]]), **options)
    fields = task.config_fields()
    assert fields["semantic_loss_ignore_index"] == 0
    assert fields["class_weights"] == pytest.approx([1.0, 1.0, 1.0])  # the two zeros are not counted
    score = task.build_score()
    score.update(torch.tensor([[1, 1, 1, 2]]), torch.tensor([[0, 0, 1, 2]]))
    assert score.compute()["mean_iou"] == 1
    with pytest.raises(ValueError, match=r"has the id 255, .* \(ids 0 to 2; 0 is ignored\)"):
        task.read({"image": picture(1, 2), "target": np.array([[0, 255]])}, "image 7")
    with pytest.raises(ValueError, match=r"semantic_loss_ignore_index` must be the id of a class, got 'no'"):
        build(SegmentationTask, "semantic-segmentation", config={"semantic_loss_ignore_index": "no"})


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
    rows = mask_rows([[0, 0, 0, 1, 1, 255]])
    task = build(SegmentationTask, "semantic-segmentation", train=rows, class_weights="balanced")
    assert task.config_fields()["class_weights"] == pytest.approx([5 / 6, 5 / 4, 1.0])


def test_balanced_weights_need_ids_within_the_classes():
    table = Dataset.from_dict({"target": [[[0, 1, 300]]]})
    task = build(SegmentationTask, "semantic-segmentation", train=table, class_weights="balanced")
    with pytest.raises(ValueError, match="mask of training image 0 has the id 300, but there are 3 classes"):
        task.config_fields()


def label_rows(*labels):
    return Dataset.from_dict({"target": list(labels)})


def build_multi_label(names=("a", "b", "c"), train=None, **options):
    return build(MultiLabelTask, "image-classification", names, train or label_rows([0]), **options)


@pytest.fixture
def multi_label():
    return build_multi_label()


def test_several_labels_become_ones(multi_label):
    assert multi_label.config_fields()["problem_type"] == "multi_label_classification"
    for classes, expected in (([0, 2], [1, 0, 1]), ([], [0, 0, 0])):
        sample = multi_label.read({"image": picture(), "target": classes}, "image 0")
        assert multi_label.labels(sample).tolist() == expected


@pytest.mark.filterwarnings("ignore:No positive samples:UserWarning")
def test_mean_average_precision_by_hand(multi_label):
    # Class a is found above the others, b's second image is a miss, and c occurs nowhere.
    logits = torch.tensor([[0.9, 2.0, -3.0], [0.1, -1.0, -3.0], [0.2, 1.0, -3.0]])  # all of a would pass for shares
    labels = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]])
    predictions, references = multi_label.compare(SimpleNamespace(logits=logits), {"labels": labels})
    torch.testing.assert_close(predictions, logits.sigmoid())
    score = multi_label.build_score()
    for _ in range(2):
        score.update(predictions[:2], references[:2])
        score.update(predictions[2:], references[2:])
        result = score.compute()
        assert result["mean_average_precision"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
        assert result["f1"] == pytest.approx((2 / 4 + 2 / 4) / 2)
        score.reset()


def test_average_precision_of_one_class():
    task = build_multi_label(("a",))
    predictions, references = task.compare(
        SimpleNamespace(logits=torch.tensor([[2.0], [1.0], [-1.0]])), {"labels": torch.tensor([[0.0], [1], [0]])}
    )
    score = task.build_score()
    score.update(predictions, references)
    assert {name: float(value) for name, value in score.compute().items()} == pytest.approx(
        {"mean_average_precision": 1 / 2, "f1": 2 / 3}
    )


def test_validation_images_need_a_class():
    with pytest.raises(
        ValueError, match=r"No validation image of 'data' has a class, .* more images with `validation_s"
    ):
        build_multi_label(train=label_rows([], []))


def test_balanced_weights_are_not_for_several_labels():
    task = build_multi_label(class_weights="balanced")
    with pytest.raises(ValueError, match=r"`class_weights` 'balanced' is for one class an image; .* each of the 3"):
        task.config_fields()
    task = build_multi_label(class_weights=(1.0, 2.0, 3.0))
    assert task.config_fields()["class_weights"] == [1.0, 2.0, 3.0]


def test_picture_of_several_labels_shows_all_that_are_predicted():
    task = build_multi_label(("a", "b", "c", "d", "e"))
    truth, predicted = Figure().subplots(1, 2)
    reference = torch.tensor([1, 0, 0, 0, 1])
    task.draw_truth(truth, torch.zeros(4, 4, 3), reference)
    task.draw_prediction(predicted, torch.zeros(4, 4, 3), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1]), reference)
    assert truth.get_title() == "a, e"
    assert [label.get_text() for label in predicted.get_yticklabels()] == ["d", "c", "b", "a"]
    colors = [bar.get_facecolor()[:2] for bar in predicted.patches]
    assert len(set(colors[:3])) == 1
    assert colors[3] != colors[0]  # a is right, the others are not
    task.draw_truth(truth, torch.zeros(4, 4, 3), torch.zeros(5))
    assert truth.get_title() == "no class"


def test_regression():
    task = build(RegressionTask, "image-classification", names=())
    fields = task.config_fields()
    assert (fields["problem_type"], fields["id2label"]) == ("regression", {0: "value"})
    sample = task.read({"image": picture(), "target": 2.5}, "image 0")
    labels = torch.stack([task.labels(sample), torch.tensor(0.0)])
    predictions, references = task.compare(SimpleNamespace(logits=torch.tensor([[2.0], [1.0]])), {"labels": labels})
    score = task.build_score()
    score.update(predictions, references)
    assert score.compute()["mean_absolute_error"] == pytest.approx((0.5 + 1.0) / 2)
    task = build(RegressionTask, "image-classification", class_weights="balanced")
    with pytest.raises(ValueError, match="`class_weights` is for classes, but the labels are measured numbers"):
        task.config_fields()


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
