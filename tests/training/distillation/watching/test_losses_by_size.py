from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_recipes import small_recipe
from torch import Tensor

from training.distillation import monitoring
from training.distillation.monitoring import LossesBySize
from training.figures.progress import loss_curves
from training.views.plan import Batch, BatchPlan


class OneRank:
    device = torch.device("cpu")

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return tensor


ONE_RANK = cast(Accelerator, OneRank())


def test_means_are_by_size_over_steps_and_parts() -> None:
    recipe = small_recipe("a", "b", partitions=[{"sizes_px": [32, 64], "batch_size": 4, "accumulation_steps": 2}])
    losses = LossesBySize(recipe.partitions)
    part = BatchPlan(recipe, 100, patch_size=16).step(0)[0]
    for size, step in ((32, 1.0), (32, 5.0), (64, 9.0)):
        for shift in (0.0, 1.0):  # two parts of two images
            values = {"loss": torch.zeros(()), "features/a": torch.tensor(step + shift), "mesa": torch.tensor(shift)}
            losses.add(replace(part, size_px=size, teachers=("a",)), {**values, "features/b": torch.zeros(())})
        losses.end_step(is_counted=True)
        losses.add(replace(part, size_px=size), {"features/a": torch.tensor(float("nan"))})
        losses.end_step(is_counted=False)
    expected = {"features@32px/a": 3.5, "features@64px/a": 9.5, "mesa@32px": 0.5, "mesa@64px": 0.5}
    assert losses.end_interval(ONE_RANK) == pytest.approx(expected)
    assert losses.end_interval(ONE_RANK) == {}


def test_ranks_may_know_different_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a rank is bound to a partition: all must exchange the same numbers."""
    monkeypatch.setattr(monitoring, "gather_object", lambda own: [*own, "features/b"])
    recipe = small_recipe("a", "b", partitions=[{"sizes_px": [32, 64], "batch_size": 4}])
    exchanged: list[tuple[int, ...]] = []
    accelerator = OneRank()
    accelerator.reduce = lambda tensor, reduction: exchanged.append(tuple(tensor.shape)) or tensor
    (part,) = BatchPlan(recipe, 100, patch_size=16).step(0)
    for losses in ({"features/a": torch.ones(())}, {}):
        known = LossesBySize(recipe.partitions)
        known.add(part, losses)
        known.end_step(is_counted=True)
        known.end_interval(cast(Accelerator, accelerator))
    assert exchanged == [(2, 4), (2, 2)]


def test_a_run_at_one_size_needs_none() -> None:
    recipe = small_recipe("a", partitions=[{"sizes_px": [32]}])
    losses = LossesBySize(recipe.partitions)
    losses.add(BatchPlan(recipe, 100, patch_size=16).step(0)[0], {"features/a": torch.ones(())})
    losses.end_step(is_counted=True)
    assert losses.end_interval(ONE_RANK) == {}


def test_which_sizes_an_interval_drew_does_not_show_in_the_curve() -> None:
    """With the demo's sizes and intervals, and losses that fall as its own do and are higher at the small size."""
    recipe = small_recipe("a", partitions=[{"sizes_px": [96, 128]}], schedule={"num_steps": 1400})
    losses, plain, series = LossesBySize(recipe.partitions), [], {}
    interval: list[float] = []
    for batch in BatchPlan(recipe, 12000, patch_size=16).steps(0, 1400):
        step = batch.step + 1
        interval.append(0.9 - 0.2 * step / 1400 + _offset(batch))
        losses.add(batch, {"features/a": torch.tensor(interval[-1])})
        losses.end_step(is_counted=True)
        if step % 20 == 0:
            plain.append(float(np.mean(interval)))
            interval.clear()
            for name, value in losses.end_interval(ONE_RANK).items():
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    steps, values = loss_curves({**series, "features/a": (steps, plain)}, "features")["a"]
    assert len(steps) == 70
    assert np.abs(np.diff(plain)).max() > 0.03
    assert np.abs(np.diff(values)).max() < 0.006


def _offset(batch: Batch) -> float:
    return 0.09 if batch.size_px == 96 else -0.09
