"""Pictures of what a validation set says: confusions, precision over recall, the worst errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from foundation.errors import first_few
from training.finetuning.examination.evidence import Ranking


MAX_CLASSES = 30  # our choice: more names cannot be read
MAX_CURVES = 10  # our choice: as many colors as matplotlib tells apart
SMALL_MATRIX = 12  # our choice: up to so many classes the cells have their numbers


def draw_confusion(confusion: Tensor, names: Sequence[str]) -> Figure:
    """Return a figure of the share of each true class that was taken for each class; of many classes the worst.

    Args:
        confusion: Counts, `(num_classes, num_classes)`, rows for true classes.
        names: Of the classes.
    """
    shares = confusion.double() / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    occurring = confusion.sum(dim=1) > 0
    worst = shares.diag().where(occurring, 2.0).argsort(stable=True)[:MAX_CLASSES].sort().values
    shown, labels = shares[worst][:, worst].numpy(), [names[number] for number in worst.tolist()]
    side = max(4.0, 0.3 * len(labels) + 2)
    figure = Figure(figsize=(side, side), dpi=150, layout="constrained")
    ax = figure.subplots()
    ax.imshow(shown, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(labels))
    ax.set_xticks(ticks, labels, rotation=90, fontsize=7)
    ax.set_yticks(ticks, labels, fontsize=7)
    left_out = f", the {len(labels)} least often right of {len(names)}" if len(labels) < len(names) else ""
    ax.set(xlabel="predicted", ylabel="true", title=f"share of each true class{left_out}")
    ax.title.set_fontsize(8)
    if len(labels) <= SMALL_MATRIX:
        for (row, column), share in np.ndenumerate(shown):
            color = "white" if share > 0.5 else "black"
            ax.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=6, color=color)
    return figure


def precision_and_recall(ranking: Ranking, number: int) -> tuple[Tensor, Tensor]:
    """Return precision and recall of a class at each of its answers, from the most certain down."""
    _, hits = ranking.of_class(number)
    return hits / torch.arange(1, len(hits) + 1), hits / ranking.num_truths[number].clamp(min=1)


def average_precision(precision: Tensor, recall: Tensor) -> float:
    """Return the mean precision over recall, as scikit-learn defines it: weighted by each gain of recall."""
    gains = torch.cat([recall[:1], recall.diff()])
    return float((precision * gains).sum())


def draw_precision_recall(ranking: Ranking, names: Sequence[str]) -> Figure:
    """Return a figure of precision over recall, a curve for each class; of many classes the worst."""
    curves = {number: precision_and_recall(ranking, number) for number in ranking.occurring()}
    scores = {number: average_precision(*curve) for number, curve in curves.items()}
    worst = sorted(scores, key=scores.__getitem__)[:MAX_CURVES]
    figure = Figure(figsize=(5, 4.5), dpi=150, layout="constrained")
    ax = figure.subplots()
    for number in sorted(worst):
        precision, recall = curves[number]
        ax.step(recall, precision, where="post", linewidth=1, label=f"{names[number]}, {scores[number]:.2f}")
    left_out = f": the worst {len(worst)} of {len(scores)} classes" if len(worst) < len(scores) else ""
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=f"average precision{left_out}")
    ax.title.set_fontsize(8)
    ax.legend(fontsize=6, loc="lower left")
    return figure


def describe_worst(errors: Tensor, count: int) -> tuple[list[int], str]:
    """Return the images with the largest errors, the worst first, and a title that says how large they are."""
    worst = errors.argsort(descending=True, stable=True)[:count].tolist()
    shown = first_few([f"{float(errors[index]):.3g}" for index in worst], count)
    return worst, f"largest errors: {shown} (median {float(errors.median()):.3g})"
