"""Saved models are asked in each way about the same images."""

import pytest
import torch
from task_models import tiny_config
from tiny_tuning import TINY_DETECTOR, tuning_settings

from modeling_radio import RadioForObjectDetection, RadioForSemanticSegmentation
from training.demo_kit.tuning.raw_results import load_results
from training.demo_kit.tuning.runs import Grid
from training.demo_kit.tuning.test_time import looks
from training.demo_kit.tuning.test_time.looks import FLIP, MAX_OBJECTS, PLAIN, Look, Subject, Tuned, answers
from training.demo_kit.tuning.test_time.results import FittedScore, LookScore
from training.finetuning.data.sources import load_images
from training.finetuning.tasks.detection import NO_OBJECT
from training.finetuning.tasks.examples import build_examples
from training.finetuning.tasks.registry import build_task


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def tuned(model_class, data, task, **config):
    """A model whose head has weights that are large enough for its answers to differ, and all images of a folder."""
    settings = tuning_settings(task, data=data, size=(32, 32), precision="fp32")
    task = build_task(settings, load_images(settings))
    model = model_class(tiny_config(num_labels=len(task.class_names), **config)).eval()
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if weight.ndim > 1 and not part.startswith("radio_model."):
                weight.normal_(std=weight[0].numel() ** -0.5)
    examples = build_examples(task, task.images.train, "image", is_training=False)
    return Tuned(task, model, [examples[index] for index in range(len(examples))])


@pytest.fixture
def segmenter(voc_folder):
    return tuned(RadioForSemanticSegmentation, voc_folder, "semantic-segmentation")


@pytest.fixture
def detector(outlines_folder):
    return tuned(
        RadioForObjectDetection, outlines_folder, "object-detection", **{**TINY_DETECTOR, "detection_num_queries": 4}
    )


def test_each_way_to_look_has_its_own_score(segmenter):
    ways = {**PLAIN, **FLIP, "scales": Look({"scales": (1, 1.5)}), "both": Look({"scales": (1, 1.5), "flip": True})}
    subject = Subject("masks", ("mean_iou",), ways)
    scores = list(looks.measure_looks(segmenter, "masks", subject, 3, 100))
    assert [(score.subject, score.look, score.seed) for score in scores] == [("masks", way, 3) for way in ways]
    assert {score.num_images for score in scores} == {len(segmenter.images)}
    assert len({score.metrics["mean_iou"] for score in scores}) == len(ways)
    assert set(scores[0].metrics) == {"mean_iou"}
    assert [score.pixels / 32**2 for score in scores] == [1, 2, 1 + 1.5**2, 2 * (1 + 1.5**2)]


def test_large_images_are_seen_small_whole_or_in_tiles(segmenter):
    images = segmenter.images + segmenter.images[:1]
    segmenter = Tuned(segmenter.task, segmenter.model, (images * 4)[:8])
    ways = {"small": Look(size=32), "whole": Look(), "tiles": Look({"tile_size": 32})}
    sides = []
    segmenter.model.register_forward_pre_hook(lambda model, inputs: sides.append(tuple(inputs[0].shape[-2:])))
    scores = list(looks.measure_looks(segmenter, "large", Subject("masks", ("mean_iou",), ways, is_large=True), 0, 8))
    assert sides == [(32, 32), (64, 64), *[(32, 32)] * 9]
    assert {score.num_images for score in scores} == {2}
    assert [score.pixels / 32**2 for score in scores] == [1, 4, 9]
    assert len({score.metrics["mean_iou"] for score in scores}) == len(ways)


def test_fewer_images_are_spread_evenly(segmenter):
    segmenter = Tuned(segmenter.task, segmenter.model, segmenter.images * 3)
    seen = []
    segmenter.model.register_forward_pre_hook(lambda model, inputs: seen.extend(inputs[0]))
    list(looks.measure_looks(segmenter, "masks", Subject("masks", ("mean_iou",), PLAIN), 0, 3))
    expected = [segmenter.images[index]["pixel_values"] for index in (0, len(segmenter.images) // 3)]
    assert len(seen) == 3
    torch.testing.assert_close(torch.stack(seen[:2]), torch.stack(expected))


def test_boxes_that_merging_leaves_out_are_no_answers(detector):
    batch = detector.task.collate(detector.images[:2])
    plain, _ = answers(detector.task, detector.model, Look(), batch)
    twice, _ = answers(detector.task, detector.model, Look({"scales": (1.0, 1.0)}), batch)
    many, truth = answers(detector.task, detector.model, Look({"scales": (1.0,) * 30, "nms_threshold": 1.0}), batch)
    assert plain.shape[1] == 4  # queries
    assert (plain[..., 4] != NO_OBJECT).all()
    left_out = twice[..., 4] == NO_OBJECT
    assert left_out[:, 4:].all()
    assert not left_out[:, 0].any()
    assert torch.equal(left_out, twice[..., 5] == 0)
    assert many.shape[1] == MAX_OBJECTS < 30 * 4
    assert truth.shape[2] == many.shape[2] == 6


def test_thresholds_are_fitted_to_all_images(detector, monkeypatch):
    counts = []
    monkeypatch.setattr(looks, "measure_fitted", lambda name, seed, images, **how: counts.append((len(images), how)))
    looks.measure_fits(detector, "boxes", 0)
    assert counts == [(len(detector.images), {"has_thresholds": True})]


@pytest.fixture
def grid(student, shades, tmp_path, monkeypatch):
    subject = Subject(shades, ("accuracy",), {**PLAIN, **FLIP})
    monkeypatch.setattr(looks, "SUBJECTS", {"shades": subject, "again": subject})
    return Grid(student, tmp_path / "words", tmp_path / "runs", tmp_path / "raw")


def test_models_of_the_grid_answer_as_in_their_runs(grid, shades):
    grid.run(shades, "LoRA", 0)
    scores = list(looks.measure(grid, 0, 100))
    expected = load_results(grid.results, shades)["LoRA", 0].metrics["accuracy"]
    plain = [score for score in scores if isinstance(score, LookScore) and score.look == "plain"]
    assert [score.metrics["accuracy"] for score in plain] == pytest.approx([expected] * 2)
    assert [score.subject for score in scores if isinstance(score, FittedScore)] == ["shades", "again"]


def test_models_that_are_not_there_are_named_with_the_command_that_makes_them(grid):
    with pytest.raises(
        ValueError, match=r"no model .*final'.*finetune_grid --tasks shades --arms LoRA --seeds 2` first"
    ):
        list(looks.measure(grid, 2, 100))
