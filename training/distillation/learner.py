"""The student of a run and what its losses need besides a batch: moving average, statistics, hooks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from modeling_radio import RadioModel
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.student.ema import MovingAverage
from modeling_radio.training.targets.statistics import TeacherStatistics


@dataclass(frozen=True)
class Learner:
    """The student with its optimizer and everything by which its outputs are judged.

    Attributes:
        recipe: The recipe, with the numbers that follow from the device.
        accelerator: This rank's accelerator.
        model: The student's network.
        student: `model` with the further heads of hooks, wrapped by Accelerate for DDP or FSDP: forward passes call it.
        optimizer: Optimizer over the parameters of `student`.
        ema: The moving average of `model`.
        statistics: Running statistics of the teachers: they standardize targets and balance summary losses.
        hooks: All that acts on each step, by name, in the order of calls.
    """

    recipe: Recipe
    accelerator: Accelerator
    model: RadioModel
    student: nn.Module
    optimizer: Optimizer
    ema: MovingAverage
    statistics: TeacherStatistics
    hooks: Mapping[str, StepHook]

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.accelerator.device

    @property
    def average(self) -> RadioModel:
        """The network whose weights are the moving average."""
        return cast(RadioModel, self.ema.module)
