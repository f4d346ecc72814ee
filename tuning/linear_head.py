"""The optimum of a linear head on frozen features: logistic or ridge regression, chosen on the validation images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate.utils import tqdm
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from modeling_radio.checks_radio import Resolution
from modeling_radio.core.ranks import rank_and_count, rows_of_all_ranks
from modeling_radio.core.seeds import make_generator
from modeling_radio.heads_radio import RadioClassifier, RadioLinearSegmentationHead
from modeling_radio.metrics.knn import TEMPERATURE, nearest_neighbors
from modeling_radio.tuning.tasks.base import (
    FinetuningTask,
    LinearLoss,
    TableExamples,
    build_examples,
    sampling_weights,
    squared_error,
    training_images,
)
from modeling_radio.tuning.trainer import FinetuningTrainer


STRENGTHS = tuple(10.0**power for power in range(3, -4, -1))
"""Our choice: penalties that are tried, for the sum of the losses (scikit-learn's `1 / C`), strongest first."""
MORE_TRIED = 2
"""Penalties that are tried after the best one, since weaker ones are slower and rarely better; our choice."""
TOLERANCE = 1e-6
"""Largest entry of the gradient of the mean loss at the optimum; scikit-learn has 1e-4."""
MAX_ITERATIONS = 1000  # our choice: far more than are needed
MAX_PATCHES = 100_000
"""Our choice: patches of all images that a head of segmentation is fitted to; more are drawn at random."""
ROWS = 2**15
"""Rows whose features are converted to float64 at a time."""
NEIGHBORS = 20  # of kNN, as in the papers of RADIO


@dataclass(frozen=True)
class LinearRows:
    """Features that a linear head reads, and the targets of its outputs.

    Attributes:
        features: Float32, `(rows, channels)`, standardized or not.
        targets: Float32, `(rows, outputs)`.
        labels: Labels as the model takes them, for whole images; else empty.
    """

    features: Tensor
    targets: Tensor
    labels: Tensor


@dataclass(frozen=True)
class LinearFit:
    """A linear layer of standardized features, in float64.

    Attributes:
        weight: `(outputs, channels)`.
        bias: `(outputs,)`.
        mean: Mean of the features, `(channels,)`.
        deviation: Their standard deviation.
        penalty: The penalty that was chosen.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor
    penalty: float

    def unstandardized(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias for features as they are."""
        weight = self.weight / self.deviation
        return weight, self.bias - weight @ self.mean

    def __call__(self, features: Tensor) -> Tensor:
        """Return the outputs for features as they are."""
        weight, bias = self.unstandardized()
        return features.double() @ weight.T + bias


def fit(
    rows: LinearRows, loss: LinearLoss, penalty: float, start: Tensor | None = None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return weight `(outputs, channels)` and bias `(outputs,)` of the least penalized loss, by L-BFGS in float64.

    Args:
        rows: Standardized features and targets.
        loss: The loss, convex in the logits.
        penalty: Half of it times the sum of the squared weights, not biases, is added to the sum of the losses.
        start: Earlier weight and bias in one, `(outputs, channels + 1)`.
        weights: Factor on the loss of each row, `(rows,)`.
    """
    from scipy.optimize import minimize

    features, targets = rows.features, rows.targets
    shape = targets.shape[1], features.shape[1] + 1
    parts = [slice(begin, begin + ROWS) for begin in range(0, len(features), ROWS)]

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        both = torch.from_numpy(point).view(shape).to(features.device).requires_grad_()
        total = penalty / 2 * both[:, :-1].square().sum() / len(features)
        total.backward()
        value = total.detach()
        for part in parts:
            logits = features[part].double() @ both[:, :-1].T + both[:, -1]
            losses = loss(logits, targets[part].double())
            mean = (losses if weights is None else losses * weights[part]).sum() / len(features)
            mean.backward()
            value = value + mean.detach()
        assert both.grad is not None
        return float(value), both.grad.flatten().cpu().numpy()

    first = torch.zeros(shape, dtype=torch.float64) if start is None else start.cpu()
    options: Any = {"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "gtol": TOLERANCE, "ftol": 0.0}
    found = minimize(objective, first.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    both = torch.from_numpy(found.x).view(shape).to(features.device)
    return both[:, :-1], both[:, -1]


def fit_best(
    rows: LinearRows, validation: LinearRows, loss: LinearLoss, weights: Tensor | None = None, eps: float = 0.0
) -> LinearFit:
    """Fit a linear layer with the penalty of the least loss on the validation rows.

    Args:
        rows: Features and targets of the training images.
        validation: Those of the validation images.
        loss: As in `fit`.
        weights: As in `fit`.
        eps: Is added to the variance of the features, as the batch norm does that standardizes them.
    """
    mean, deviation = _mean_and_deviation(rows.features)
    deviation = (deviation.square() + eps).sqrt()
    center, scale = torch.zeros_like(rows.targets[0].double()), torch.ones_like(rows.targets[0].double())
    if loss is squared_error:  # numbers of any unit
        center, scale = _mean_and_deviation(rows.targets)
    known, unknown = (
        LinearRows(((each.features - mean) / deviation).float(), ((each.targets - center) / scale).float(), each.labels)
        for each in (rows, validation)
    )
    best, least, num_worse, both = None, torch.inf, 0, None
    for penalty in STRENGTHS:
        weight, bias = fit(known, loss, penalty, both, weights)
        both = torch.cat([weight, bias[:, None]], dim=1)
        value = float(loss(unknown.features.double() @ weight.T + bias, unknown.targets.double()).mean())
        if best is None or value < least:
            best, least, num_worse = (weight, bias, penalty), value, 0
        elif (num_worse := num_worse + 1) == MORE_TRIED:
            break
    assert best is not None
    weight, bias, penalty = best
    weight, bias = weight * scale[:, None], bias * scale + center
    return LinearFit(weight, bias, mean, deviation, penalty)


def _mean_and_deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each column, 1 for a constant one; float64."""
    deviation, mean = torch.std_mean(values.double(), dim=0, correction=0)
    return mean, deviation.where(deviation > torch.finfo(torch.float32).eps * mean.abs(), 1.0)


def linear_head(model: nn.Module, task: FinetuningTask) -> tuple[nn.Module, nn.Module] | None:
    """Return the layer whose inputs are the features, and the linear layer; `None` if the head is not linear.

    A task with a loss or a model of the user's has no optimum that is known here, nor do images of a stream end.
    """
    if task.linear_loss(None) is None or task.loss_function is not None or task.images.stream is not None:
        return None
    kinds = (RadioClassifier, RadioLinearSegmentationHead)
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, kinds) and ".original_module" not in name  # of peft, which trains a copy
    ]
    if not found:
        return None
    head = found[-1]
    return (head[1], head[1]) if isinstance(head, RadioClassifier) else (head.norm, head.classifier)


@torch.no_grad()
def gather_rows(trainer: FinetuningTrainer, source: nn.Module, examples: TableExamples) -> LinearRows:
    """Return the inputs of a layer, and the targets, of all images on every rank.

    Args:
        trainer: Trainer with the model and the task.
        source: The layer.
        examples: The images, not augmented.
    """
    task, model, device = trainer.task, trainer.model, trainer.args.device
    assert model is not None
    rank, num_ranks = rank_and_count()
    ends = [number * len(examples) // num_ranks for number in range(num_ranks + 1)]
    counts = [end - begin for begin, end in pairwise(ends)]
    loader = DataLoader(
        Subset(examples, range(ends[rank], ends[rank + 1]) or [0]),  # a rank without images drops that row again
        trainer.args.eval_batch_size,
        collate_fn=task.collate,
        num_workers=trainer.args.dataloader_num_workers,
    )
    caught: list[Tensor] = []
    handle = source.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].float()))
    parts: list[tuple[Tensor, ...]] = []
    generator = make_generator(task.run_settings.seed, "patches", rank)
    model.eval()
    try:
        for batch in tqdm(loader, desc="features", leave=False, disable=rank > 0):
            caught.clear()
            labels = batch["labels"].to(device)
            with trainer.compute_loss_context_manager():
                model(pixel_values=batch["pixel_values"].to(device))
            parts.append(_rows_of(task, caught[-1], labels, max(1, MAX_PATCHES // len(examples)), generator))
    finally:
        handle.remove()
    joined = [torch.cat(each)[: counts[rank]] for each in zip(*parts, strict=True)]
    on_all = [rows_of_all_ranks(each, counts) for each in joined]
    if len(on_all[0].shape) == 3:  # patches of images
        on_all = [each.flatten(0, 1) for each in on_all[:2]]
    if not on_all[0].is_cuda:  # others have no float64
        on_all = [each.cpu() for each in on_all]
    return LinearRows(on_all[0], on_all[1].float(), on_all[2] if len(on_all) > 2 else on_all[0].new_empty(0))


def _rows_of(
    task: FinetuningTask, inputs: Tensor, labels: Tensor, most: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return features, targets and labels of images; or features and targets of `most` patches of each image."""
    if inputs.ndim == 2:
        return inputs, task.linear_targets(labels, None), labels
    targets = task.linear_targets(labels, Resolution(*inputs.shape[-2:]))
    chosen = torch.randperm(targets.shape[1], generator=generator)[:most].to(inputs.device)
    return inputs.flatten(2)[:, :, chosen].transpose(1, 2), targets[:, chosen]


@torch.no_grad()
def set_head(source: nn.Module, layer: nn.Module, found: LinearFit) -> None:
    """Give a head the fitted layer; a batch norm before it standardizes the features."""
    weight, bias = found.unstandardized()
    if isinstance(source, nn.BatchNorm2d):
        weight, bias = found.weight, found.bias
        source.reset_parameters()
        source.get_buffer("running_mean").copy_(found.mean)
        source.get_buffer("running_var").copy_((found.deviation.square() - source.eps).clamp(min=0))
    layer.get_parameter("weight").copy_(weight.view_as(layer.get_parameter("weight")))
    layer.get_parameter("bias").copy_(bias)


def fit_head(trainer: FinetuningTrainer, head: tuple[nn.Module, nn.Module]) -> dict[str, float]:
    """Give the model's head its optimum for the frozen features, on every rank.

    Args:
        trainer: Trainer with the model and the task.
        head: As `linear_head` returns it.

    Returns:
        The task's best metric on the validation images of what needs no tuning, for labels of whole images, else
        nothing: the constant answer "most_frequent", "nearest_neighbors" and "linear_head"; and
        "linear_head_on_training_images".
    """
    task, model = trainer.task, trainer.model
    assert model is not None
    nn.Module.to(model, trainer.args.device)
    examples, validation = training_images(task), build_examples(task, is_training=False)
    assert isinstance(validation, TableExamples)
    rows, unknown = gather_rows(trainer, head[0], examples), gather_rows(trainer, head[0], validation)
    weights = sampling_weights(task)
    if weights is not None:
        weights = weights.double().to(rows.features.device).repeat_interleave(len(rows.features) // len(weights))
    eps = head[0].eps if isinstance(head[0], nn.BatchNorm2d) else 0.0
    config: Any = model.config
    loss = task.linear_loss(config.class_weights)
    assert loss is not None  # `linear_head` has asked
    found = fit_best(rows, unknown, loss, weights, eps)
    set_head(*head, found)
    if not len(rows.labels):
        return {}
    outputs = [SimpleNamespace(logits=found(each.features)) for each in (unknown, rows)]
    tuned, trained = (
        task.compare(each, {"labels": of.labels}) for each, of in zip(outputs, (unknown, rows), strict=True)
    )
    answers = {
        "most_frequent": rows.targets.mean(0).expand(len(unknown.features), -1),
        "nearest_neighbors": _vote(rows, unknown.features),
    }
    return {
        **{name: task.measure(each.view_as(tuned[0]), tuned[1]) for name, each in answers.items()},
        "linear_head": task.measure(*tuned),
        "linear_head_on_training_images": task.measure(*trained),
    }


def _vote(gallery: LinearRows, queries: Tensor) -> Tensor:
    """Return the mean targets of the nearest images, weighted as kNN's votes, `(queries, outputs)`."""
    means = []
    for part in queries.split(ROWS // NEIGHBORS):
        found = nearest_neighbors(part, gallery.features, min(NEIGHBORS, len(gallery.features)))
        votes = (found.similarity / TEMPERATURE).softmax(dim=1)
        means.append((votes[:, :, None] * gallery.targets[found.index]).sum(1))
    return torch.cat(means)
