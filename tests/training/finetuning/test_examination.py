"""A tuned model is examined: figures show what was counted, thresholds have the best F1, and pipelines read them."""

import json

import pytest
import torch
from datasets import List, Value
from PIL import Image
from sklearn.metrics import average_precision_score
from tiny_tuning import TINY_DETECTOR, run_settings, save_labels

from modeling_radio import RadioConfig, RadioForImageClassification, RadioForObjectDetection, RadioImageProcessor
from modeling_radio.pipelines_radio import RadioImageClassificationPipeline, RadioObjectDetectionPipeline
from training.finetuning.error_analysis import (
    MAX_CLASSES,
    NO_THRESHOLD,
    average_precision,
    best_thresholds,
    describe_worst,
    draw_confusion,
    draw_precision_recall,
    gather_evidence,
    precision_and_recall,
)
from training.finetuning.run import FinetuningRun
from training.finetuning.tasks.base import Ranking, rank_classes


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def tuned(base, data, output, task="image-classification", **options):
    FinetuningRun(run_settings(base, data, output, task, **options)).run()
    return json.loads((output / "results.json").read_text()), RadioConfig.from_pretrained(output / "final")


def pictures(output):
    return {path.name for path in (output / "pictures").iterdir() if not path.name.startswith("step-")}


def test_a_classifier_has_no_thresholds(base, class_folders, tmp_path):
    results, config = tuned(base, class_folders, tmp_path / "run")
    assert pictures(tmp_path / "run") == {"confusion.png", "precision_recall.png", "worst.png"}
    assert "thresholds" not in results
    assert (config.temperature, config.score_thresholds) == (1.0, None)


def test_several_labels_have_thresholds_that_a_pipeline_takes(base, tmp_path):
    labels = [["cat"], ["dog", "cat"], [], ["dog"], ["cat"], ["dog"]]
    data = save_labels(tmp_path / "data", List(Value("string")), labels)
    results, config = tuned(base, data, tmp_path / "run", validation_share=0.5)
    assert list(results["thresholds"]) == ["cat", "dog"]
    assert config.score_thresholds == list(results["thresholds"].values())
    model = RadioForImageClassification.from_pretrained(tmp_path / "run" / "final").eval()
    model.config.score_thresholds = [0.0, 1.0]
    processor = RadioImageProcessor.from_pretrained(tmp_path / "run" / "final")
    classify = RadioImageClassificationPipeline(model=model, image_processor=processor)
    image = Image.new("RGB", (48, 32), "teal")
    assert len(classify(image)) == 2
    assert [each["label"] for each in classify(image, threshold="tuned")] == ["cat"]
    assert classify(image, threshold=1.0) == []
    with pytest.raises(ValueError, match=r"`threshold` must be a number in \[0, 1\] or 'tuned', got 'low'"):
        classify(image, threshold="low")


def test_a_detector_has_thresholds_by_default(base, coco_folder, tmp_path):
    _, config = tuned(base, coco_folder, tmp_path / "run", "object-detection", config=TINY_DETECTOR)
    assert pictures(tmp_path / "run") == {"precision_recall.png", "worst.png"}
    assert len(config.score_thresholds) == 2
    model = RadioForObjectDetection.from_pretrained(tmp_path / "run" / "final").eval()
    processor = RadioImageProcessor.from_pretrained(tmp_path / "run" / "final")
    detect = RadioObjectDetectionPipeline(model=model, image_processor=processor)
    image = Image.new("RGB", (48, 32), "teal")
    model.config.score_thresholds = [0.0, 1.0]
    assert {each["label"] for each in detect(image)} == {"bus"}
    assert {each["label"] for each in detect(image, threshold=0.0)} == {"bus", "person"}
    model.config.score_thresholds = None
    assert detect(image) == detect(image, threshold=0.5)


@pytest.mark.parametrize(
    ("task", "fixture", "expected"),
    [
        ("semantic-segmentation", "voc_folder", {"confusion.png", "worst.png"}),
        ("depth-estimation", "depth_folder", {"worst.png"}),
    ],
)
def test_pictures_of_maps(base, tmp_path, request, task, fixture, expected):
    config = {"dpt_hidden_size": 8}
    results, _ = tuned(base, request.getfixturevalue(fixture), tmp_path / "run", task, config=config)
    assert pictures(tmp_path / "run") == expected
    assert "thresholds" not in results


def test_evidence_is_of_every_image_once(base, class_folders, tmp_path):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", validation_share=0.5))
    examples = run.trainer.eval_dataset
    evidence = gather_evidence(run.task, run.model, examples)
    assert len(evidence.errors) == len(examples) == 3
    assert evidence.confusion.sum() == 3
    with torch.no_grad():
        logits = torch.cat([run.model(examples[index]["pixel_values"][None]).logits for index in range(3)])
    labels = torch.stack([examples[index]["labels"] for index in range(3)])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(evidence.errors, expected, atol=1e-5, rtol=1e-4)


def test_thresholds_have_the_best_f1():
    generator = torch.Generator().manual_seed(0)
    truths = torch.rand(200, 2, generator=generator) < 0.3
    scores = (0.6 * truths + 0.7 * torch.rand(200, 2, generator=generator)).clamp(0, 1)
    ranking = rank_classes(scores, truths)
    thresholds, measured = best_thresholds(ranking)

    def f1(number, threshold):
        found = scores[:, number].double() > threshold
        return float(2 * (found & truths[:, number]).sum() / (found.sum() + truths[:, number].sum()))

    for number in range(2):
        assert measured[number] == pytest.approx(f1(number, thresholds[number]))
        assert measured[number] >= max(f1(number, threshold) for threshold in torch.linspace(0, 1, 101).tolist())


def test_answers_of_one_score_are_taken_together():
    ranking = Ranking(
        torch.zeros(4, dtype=torch.long),
        torch.tensor([0.8, 0.8, 0.8, 0.1]),
        torch.tensor([True, False, False, False]),
        torch.tensor([1]),
    )
    (threshold,), (f1,) = best_thresholds(ranking)
    assert (threshold, f1) == (pytest.approx(0.45), pytest.approx(0.5))


def test_classes_without_images_have_the_usual_threshold():
    ranking = rank_classes(torch.rand(5, 2), torch.tensor([[1, 0]] * 5))
    assert best_thresholds(ranking)[0][1] == NO_THRESHOLD


def test_confusions_are_shares_of_each_true_class():
    (ax,) = draw_confusion(torch.tensor([[3, 1], [0, 0]]), ("cat", "dog")).axes
    assert ax.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["cat", "dog"]
    assert {text.get_text() for text in ax.texts} == {"0.75", "0.25", "0.00"}


def test_of_many_classes_the_worst_are_shown():
    confusion = torch.eye(MAX_CLASSES + 9, dtype=torch.long) * 9
    confusion[4, 5], confusion[4, 4] = 9, 0
    names = [f"class {number}" for number in range(len(confusion))]
    (ax,) = draw_confusion(confusion, names).axes
    shown = [tick.get_text() for tick in ax.get_yticklabels()]
    assert len(shown) == MAX_CLASSES
    assert "class 4" in shown
    assert "the 30 least often right of 39" in ax.get_title()


def test_average_precision_is_that_of_scikit_learn():
    truths, scores = torch.rand(300, 1) < 0.3, torch.rand(300, 1)
    found = average_precision(*precision_and_recall(rank_classes(scores, truths), 0))
    assert found == pytest.approx(average_precision_score(truths[:, 0], scores[:, 0]), abs=1e-6)


def test_curves_have_the_names_of_their_classes():
    truths = torch.tensor([[1, 0, 0], [0, 1, 0]] * 3)
    (ax,) = draw_precision_recall(rank_classes(truths * 0.5 + 0.1, truths), ("cat", "dog", "emu")).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["cat, 1.00", "dog, 1.00"]


def test_worst_images_come_first():
    assert describe_worst(torch.tensor([0.1, 0.9, 0.5]), 2) == ([1, 2], "largest errors: 0.9, 0.5 (median 0.5)")
