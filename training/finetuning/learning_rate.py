"""A range test of learning rates: steps at ever higher ones, and what the loss says of them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import tqdm
from matplotlib.figure import Figure

from foundation.files import write_file, write_text
from foundation.interruption import TrainingDivergedError
from training.finetuning.trainer import FinetuningTrainer


NUM_STEPS = 100  # as in fastai
RANGE = (1e-3, 1e3)
"""Factors on the run's own learning rates; our choice: three powers of ten to either side."""
SMOOTHING = 0.9  # our choice: fastai's .98 lags behind by half of so few steps
DIVERGED = 4.0  # as in fastai: the test ends where the smoothed loss is so many times its least
SHARE_OF_BEST = 0.1  # as in fastai, `minimum`: a tenth of the rate with the least loss

PICTURE, NUMBERS = "learning_rates.png", "learning_rates.json"


@dataclass(frozen=True)
class RangeTest:
    """Losses at ever higher learning rates.

    Attributes:
        peaks: The run's learning rates of the backbone or its adapters and of the head, at the factor 1.
        factors: On both, one for each step.
        losses: Before each step.
    """

    peaks: tuple[float, float]
    factors: list[float]
    losses: list[float]

    @property
    def smoothed(self) -> list[float]:
        """Exponential means of the losses, without the bias of their beginning."""
        means, mean = [], 0.0
        for count, loss in enumerate(self.losses, start=1):
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            means.append(mean / (1 - SMOOTHING**count))
        return means

    @property
    def suggestion(self) -> float | None:
        """The factor to train with; `None` where the loss fell at no rate."""
        smoothed = self.smoothed
        best = min(range(len(smoothed)), key=smoothed.__getitem__)
        return self.factors[best] * SHARE_OF_BEST if smoothed[best] < smoothed[0] else None

    def describe(self, *, is_head_alone: bool) -> str:
        """Return the suggestion as options of the command."""
        if self.suggestion is None:
            return "The loss fell at none of the learning rates: look at the labels"
        backbone, head = (peak * self.suggestion for peak in self.peaks)
        options = f"--head-learning-rate {head:.1e}"
        return f"Suggested: {options if is_head_alone else f'--learning-rate {backbone:.1e} {options}'}"

    def draw(self) -> Figure:
        """Return a figure of the loss over the factor, with the suggestion."""
        figure = Figure(figsize=(6, 3.5), dpi=150, layout="constrained")
        ax = figure.subplots()
        ax.plot(self.factors, self.losses, color="0.8", label="loss")
        ax.plot(self.factors, self.smoothed, color="tab:blue", label="smoothed")
        if self.suggestion is not None:
            ax.axvline(self.suggestion, color="tab:green", linestyle="--", label=f"suggested, {self.suggestion:.2g}")
        backbone, head = self.peaks
        ax.set(xscale="log", xlabel=f"factor on the learning rates ({backbone:.1e}, head {head:.1e})", ylabel="loss")
        ax.legend(fontsize=8)
        return figure

    def save(self, folder: Path) -> None:
        """Write the picture and the numbers into a folder."""
        write_file(folder / PICTURE, self.draw().savefig)
        write_text(folder / NUMBERS, json.dumps({**asdict(self), "suggestion": self.suggestion}, indent=2) + "\n")


def run_range_test(trainer: FinetuningTrainer, num_steps: int = NUM_STEPS) -> RangeTest:
    """Train at learning rates that rise from step to step by one factor; the model is of no use afterwards.

    The rates of backbone, blocks and head keep their proportions. It ends early where the loss diverges.

    Args:
        trainer: Of a run that has not begun.
        num_steps: Largest number of steps.

    Raises:
        ValueError: If several processes train.
        TrainingDivergedError: If the first loss is not finite.

    References:
        Smith 2017, section 3.3: Cyclical Learning Rates for Training Neural Networks. https://arxiv.org/abs/1506.01186
    """
    if trainer.args.world_size > 1:
        raise ValueError("`find_learning_rate` must run in one process: leave `accelerate launch` out.")
    optimizer, model = trainer.create_optimizer(), trainer.model
    assert model is not None
    model.train()
    peaks = [group["lr"] for group in optimizer.param_groups]
    test = RangeTest(trainer.learning_rates, [], [])
    steps = zip(_factors(num_steps), _batches(trainer), strict=False)
    for factor, inputs in tqdm(steps, total=num_steps, desc="learning rates"):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        try:
            loss = _step(trainer, model, optimizer, inputs)
        except TrainingDivergedError:
            if not test.losses:
                raise  # no learning rate is to blame
            break
        test.factors.append(factor)
        test.losses.append(loss)
        if test.smoothed[-1] > DIVERGED * min(test.smoothed):
            break
    return test


def _factors(num_steps: int) -> Sequence[float]:
    low, high = map(math.log, RANGE)
    return torch.linspace(low, high, num_steps, dtype=torch.float64).exp().tolist()


def _batches(trainer: FinetuningTrainer) -> Iterator[dict[str, Any]]:
    loader = trainer.get_train_dataloader()
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _step(
    trainer: FinetuningTrainer, model: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, Any]
) -> float:
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, trainer._prepare_inputs(inputs))
    trainer.accelerator.backward(loss)
    if trainer.args.max_grad_norm:
        trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, trainer.args.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
