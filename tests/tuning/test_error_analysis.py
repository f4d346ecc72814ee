"""Figures of counted errors, and thresholds with the best F1."""

import json

import pytest
import torch
from datasets import List, Value
from sklearn.metrics import average_precision_score
from tiny_tuning import run_settings, save_labels

from modeling_radio import RadioConfig
from modeling_radio.tuning.error_analysis import (
    MAX_CLASSES,
    NO_THRESHOLD,
    average_precision,
    best_thresholds,
    draw_confusion,
    gather_evidence,
    precision_and_recall,
)
from modeling_radio.tuning.run import FinetuningRun
from modeling_radio.tuning.tasks.base import Ranking, rank_classes


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def test_several_labels_have_thresholds_in_results_and_configuration(base, tmp_path):
    labels, output = [["cat"], ["dog", "cat"], [], ["dog"], ["cat"], ["dog"]], tmp_path / "run"
    data = save_labels(tmp_path / "data", List(Value("string")), labels)
    metrics = FinetuningRun(run_settings(base, data, output, validation_share=0.5)).run()
    assert "mean_average_precision" in metrics
    thresholds = json.loads((output / "results.json").read_text())["thresholds"]
    assert list(thresholds) == ["cat", "dog"]
    assert RadioConfig.from_pretrained(output / "final").score_thresholds == list(thresholds.values())


def test_evidence_has_every_image_once(base, class_folders, tmp_path):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", validation_share=0.5))
    examples = run.trainer.eval_dataset
    evidence = gather_evidence(run.task, run.model, examples)
    assert len(evidence.errors) == len(examples) == evidence.confusion.sum() == 4
    with torch.no_grad():
        logits = torch.cat([run.model(examples[index]["pixel_values"][None]).logits for index in range(4)])
    labels = torch.stack([examples[index]["labels"] for index in range(4)])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(evidence.errors, expected, atol=1e-5, rtol=1e-4)


def test_thresholds_have_the_best_f1():
    generator = torch.Generator().manual_seed(0)
    truths = torch.rand(200, 2, generator=generator) < 0.3
    scores = (0.6 * truths + 0.7 * torch.rand(200, 2, generator=generator)).clamp(0, 1)
    thresholds, measured = best_thresholds(rank_classes(scores, truths))

    def f1(number, threshold):
        found = scores[:, number].double() > threshold
        return float(2 * (found & truths[:, number]).sum() / (found.sum() + truths[:, number].sum()))

    for number in range(2):
        assert measured[number] == pytest.approx(f1(number, thresholds[number]))
        assert measured[number] >= max(f1(number, threshold) for threshold in torch.linspace(0, 1, 101).tolist())
    found = average_precision(*precision_and_recall(rank_classes(scores, truths), 0))
    assert found == pytest.approx(average_precision_score(truths[:, 0], scores[:, 0]), abs=1e-6)


def test_no_threshold_separates_equal_scores_or_is_fitted_without_images():
    hits = torch.tensor([True, False, False, False])
    ranking = Ranking(torch.zeros(4, dtype=torch.long), torch.tensor([0.8, 0.8, 0.8, 0.1]), hits, torch.tensor([1, 0]))
    (threshold, unknown), (f1, _) = best_thresholds(ranking)
    assert (threshold, f1) == (pytest.approx(0.45), pytest.approx(0.5))
    assert unknown == NO_THRESHOLD


def test_confusions_are_shares_of_each_true_class_and_of_many_classes_the_worst():
    (ax,) = draw_confusion(torch.tensor([[3, 1], [0, 0]]), ("cat", "dog")).axes
    shares = ax.images[0].get_array()
    assert shares[0].tolist() == [0.75, 0.25]
    assert shares[1].mask.all(), "a class without images has no shares"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["cat", "dog"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["cat", "dog (no images)"]
    assert {text.get_text() for text in ax.texts} == {"0.75", "0.25"}
    confusion = torch.eye(MAX_CLASSES + 9, dtype=torch.long) * 9
    confusion[4, 5], confusion[4, 4] = 9, 0
    (ax,) = draw_confusion(confusion, [f"class {number}" for number in range(len(confusion))]).axes
    shown = [tick.get_text() for tick in ax.get_yticklabels()]
    assert len(shown) == MAX_CLASSES
    assert "class 4" in shown
    assert "39" in ax.figure.get_suptitle()
