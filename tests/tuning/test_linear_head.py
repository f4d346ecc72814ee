"""The fitted linear head: the optimum that scikit-learn finds, and what runs make of it."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from datasets import ClassLabel, List, Value
from sklearn.linear_model import LogisticRegression, Ridge
from tiny_tuning import build_task, run_settings, save_splits, stop_after

from modeling_radio import RadioForImageClassification, RadioForSemanticSegmentation
from modeling_radio.checks_radio import Resolution
from modeling_radio.tuning.linear_head import LinearRows, fit, fit_best
from modeling_radio.tuning.run import FINAL, RESULTS, FinetuningRun
from modeling_radio.tuning.tasks.base import cross_entropy_of_shares, squared_error
from modeling_radio.tuning.tasks.classification import binary_cross_entropies
from modeling_radio.tuning.tasks.dense import SegmentationTask


NO_LABELS = torch.empty(0)


def draw_rows(count: int, targets, seed: int = 0) -> LinearRows:
    """Return rows of 6 channels and their targets, a function of noisy features."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 6, generator=generator)
    noisy = features + torch.randn(count, 6, generator=generator)
    return LinearRows(features, targets(noisy).float(), NO_LABELS)


def one_of_three(noisy):
    return torch.nn.functional.one_hot(noisy[:, :3].argmax(1), 3)


@pytest.mark.parametrize("penalty", [0.1, 10.0])
@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5)])
def test_one_class_an_image_equals_scikit_learn(penalty, weights):
    rows = draw_rows(90, one_of_three)
    loss = partial(cross_entropy_of_shares, class_weights=weights)
    weight, bias = fit(rows, loss, penalty)
    by_class = None if weights is None else dict(enumerate(weights))
    regression = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000, class_weight=by_class)
    regression.fit(rows.features.double().numpy(), rows.targets.argmax(1).numpy())
    np.testing.assert_allclose(weight.numpy(), regression.coef_, atol=1e-4)
    np.testing.assert_allclose(bias - bias.mean(), regression.intercept_ - regression.intercept_.mean(), atol=1e-4)


def test_several_classes_an_image_equal_scikit_learn_in_each():
    rows = draw_rows(90, lambda noisy: noisy[:, :3] > 0.5)
    weight, bias = fit(rows, partial(binary_cross_entropies, class_weights=None), 1.0)
    for column in range(3):
        regression = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)
        regression.fit(rows.features.double().numpy(), rows.targets[:, column].numpy())
        np.testing.assert_allclose(weight[column].numpy(), regression.coef_[0], atol=1e-4)
        assert float(bias[column]) == pytest.approx(float(regression.intercept_[0]), abs=1e-4)


def test_rows_that_count_twice_equal_two_rows():
    rows, loss = draw_rows(40, one_of_three), partial(cross_entropy_of_shares, class_weights=None)
    twice = LinearRows(rows.features.repeat(2, 1), rows.targets.repeat(2, 1), NO_LABELS)
    weighted = fit(rows, loss, 1.0, weights=torch.full((40,), 2.0, dtype=torch.float64))
    for one, other in zip(weighted, fit(twice, loss, 1.0), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_numbers_of_any_scale_equal_scikit_learn():
    rows, validation = (draw_rows(60, lambda noisy: 1e5 + 1e4 * noisy[:, :1], seed) for seed in (0, 1))
    found = fit_best(rows, validation, squared_error)
    standard = (rows.features.double() - found.mean) / found.deviation
    ridge = Ridge(alpha=found.penalty / 2, tol=1e-10).fit(standard.numpy(), rows.targets[:, 0].double().numpy())
    np.testing.assert_allclose(found(rows.features)[:, 0], ridge.predict(standard.numpy()), rtol=1e-5)


def test_the_penalty_is_that_of_the_least_loss_on_the_validation_images():
    rows, validation = draw_rows(30, one_of_three), draw_rows(200, one_of_three, seed=1)
    loss = partial(cross_entropy_of_shares, class_weights=None)
    found = fit_best(rows, validation, loss)
    least = float(loss(found(validation.features), validation.targets.double()).mean())
    standard = LinearRows(((rows.features - found.mean) / found.deviation).float(), rows.targets, NO_LABELS)
    for penalty in (found.penalty * 10, found.penalty / 10):
        weight, bias = fit(standard, loss, penalty)
        logits = ((validation.features - found.mean) / found.deviation) @ weight.T + bias
        assert least < float(loss(logits, validation.targets.double()).mean())


def test_a_constant_channel_and_a_class_without_images_are_no_obstacle():
    rows = draw_rows(30, lambda noisy: torch.nn.functional.one_hot((noisy[:, 0] > 0).long(), 3))
    rows = LinearRows(torch.cat([rows.features, torch.full((30, 1), 7.0)], 1), rows.targets, NO_LABELS)
    found = fit_best(rows, rows, partial(cross_entropy_of_shares, class_weights=None))
    assert found(rows.features).isfinite().all()
    assert (found(rows.features).argmax(1) == rows.targets.argmax(1)).double().mean() > 0.7


def test_patches_have_the_shares_of_their_pixels():
    task = build_task(SegmentationTask, "semantic-segmentation", train=[])
    mask = torch.tensor([[0, 0, 2, 2], [0, 1, 255, 2]])[None]
    shares = task.linear_targets(mask, Resolution(1, 2))
    assert shares.tolist() == [[[0.75, 0.25, 0.0], [0.0, 0.0, 0.75]]]


TARGETS = {
    "one": (ClassLabel(names=["dark", "light"]), [0, 0, 0, 0, 1, 1, 1, 1]),
    "several": (List(ClassLabel(names=["dark", "light"])), [[0], [0], [0], [], [], [1], [1], [1]]),
    "numbers": (Value("float32"), [100.0 + number for number in range(8)]),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_head_is_solved_without_steps_and_again_the_same(kind, base, tmp_path, capsys):
    feature, labels = TARGETS[kind]
    data = save_splits(tmp_path / "data", feature, labels, labels[1::2])
    runs = [FinetuningRun(run_settings(base, data, tmp_path / name, steps=9)) for name in ("one", "two")]
    metrics = [run.run() for run in runs]
    assert metrics[0] == metrics[1]
    assert "`steps`" in capsys.readouterr().out  # of no effect, which is said
    assert all(run.trainer.state.global_step == 0 for run in runs)
    results = json.loads((tmp_path / "one" / RESULTS).read_text())
    best = runs[0].task.best_metric
    assert results["baselines"]["linear_head"] == pytest.approx(metrics[0][best], abs=1e-4)
    assert results["baselines"].keys() == {"most_frequent", "nearest_neighbors", "linear_head"}
    assert best in results["training_metrics"]
    heads = [RadioForImageClassification.from_pretrained(tmp_path / name / FINAL).classifier for name in ("one", "two")]
    assert torch.equal(heads[0][1].weight, heads[1][1].weight)


def test_a_head_of_masks_is_solved(base, voc_folder, tmp_path):
    run = FinetuningRun(run_settings(base, voc_folder, tmp_path / "run", "semantic-segmentation"))
    assert "mean_iou" in run.run()
    assert run.trainer.state.global_step == 0
    model = RadioForSemanticSegmentation.from_pretrained(tmp_path / "run" / FINAL).eval()
    assert model.decode_head.norm.running_mean.any()


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_tuning_starts_from_the_fitted_head_and_returns_to_it(tune, base, class_folders, tmp_path, capsys):
    spoiled = {"learning_rate": 0.0, "head_learning_rate": 0.5, "steps": 2, "evaluate_every": 1}
    settings = run_settings(base, class_folders, tmp_path / "run", tune=tune, validation_share=0.5, **spoiled)
    solved = FinetuningRun(settings.replace(tune="head", output=tmp_path / "solved")).run()
    run = FinetuningRun(settings)
    stop_after(run, 1)
    resumed = FinetuningRun(settings)
    assert resumed.run()["accuracy"] >= solved["accuracy"]
    assert resumed.trainer.baselines.scores == run.trainer.baselines.scores  # over the stop
    assert resumed.trainer.baselines.scores["linear_head"] == pytest.approx(solved["accuracy"])
    is_kept = resumed.trainer.state.best_global_step == 0
    assert is_kept == ("head is kept" in capsys.readouterr().out)
