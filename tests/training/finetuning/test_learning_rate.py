"""The range test finds a rate below the one where the loss was least, and that where none was any good."""

import json
from functools import partial

import pytest
import torch
from tiny_tuning import run_settings

from foundation.interruption import TrainingDivergedError
from training.finetune import main
from training.finetuning.learning_rate import RANGE, RangeTest, run_range_test
from training.finetuning.run import FinetuningRun


def test_suggestion_is_a_tenth_of_the_rate_with_the_least_loss():
    factors = [10.0**power for power in range(-3, 3)]
    test = RangeTest((1e-3, 1e-2), factors, [1.0, 1.0, 0.5, 0.1, 3.0, 9.0])
    assert test.smoothed[0] == pytest.approx(1.0)
    assert test.smoothed[1] == pytest.approx(1.0)  # without bias
    assert test.suggestion == pytest.approx(0.1)
    assert test.describe(is_head_alone=False) == "Suggested: --learning-rate 1.0e-04 --head-learning-rate 1.0e-03"
    assert test.describe(is_head_alone=True) == "Suggested: --head-learning-rate 1.0e-03"
    assert RangeTest((1e-3, 1e-2), factors, [1.0, 1.1, 1.2, 1.3, 2.0, 3.0]).suggestion is None


def test_rates_rise_together_and_end_where_the_loss_diverges(base, class_folders, tmp_path):
    options = {"tune": "lora", "learning_rate": 1e-2, "head_learning_rate": 1e-1}
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))
    seen = []
    optimizer = run.trainer.create_optimizer()
    step = optimizer.step

    def record(*args, **kwargs):
        seen.append(sorted({group["lr"] for group in optimizer.param_groups}))
        return step(*args, **kwargs)

    optimizer.step = record
    before = {name: weight.clone() for name, weight in run.model.named_parameters() if weight.requires_grad}
    test = run_range_test(run.trainer, num_steps=24)
    assert 3 < len(test.losses) <= 24
    assert test.factors[0] == pytest.approx(RANGE[0])
    assert test.factors == sorted(test.factors)
    for factor, rates in zip(test.factors, seen, strict=False):
        assert rates == pytest.approx([1e-2 * factor, 1e-1 * factor])
    after = dict(run.model.named_parameters())
    assert any(not torch.equal(weight, after[name]) for name, weight in before.items())


def test_a_loss_that_never_was_finite_is_no_range(base, class_folders, tmp_path, monkeypatch):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run"))

    def diverge(*args):
        raise TrainingDivergedError("The loss of step 1 is not finite.")

    monkeypatch.setattr("training.finetuning.learning_rate._step", diverge)
    with pytest.raises(TrainingDivergedError, match="step 1"):
        run_range_test(run.trainer, num_steps=4)


def test_command_draws_and_trains_nothing(base, class_folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("training.finetuning.learning_rate.RANGE", (1e-2, 1.0))
    monkeypatch.setattr("training.finetuning.run.run_range_test", partial(run_range_test, num_steps=4))
    command = [str(base), "--task", "image-classification", "--data", str(class_folders), "--find-learning-rate"]
    assert main([*command, "--output", str(tmp_path / "run"), "--num-workers", "0", "--batch-size", "2"]) == 0
    assert "Wrote" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"learning_rates.png", "learning_rates.json"}
    numbers = json.loads((tmp_path / "run" / "learning_rates.json").read_text())
    assert len(numbers["losses"]) == len(numbers["factors"]) == 4
