"""Figures of a tuned model's errors on its validation images, and the best threshold of each class."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device, tqdm
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image

from modeling_radio.core.files import write_file, write_folder
from modeling_radio.data.labeled.tables import read_row
from modeling_radio.figures.style import on_any_background
from modeling_radio.tuning.channels import shown_in_rgb
from modeling_radio.tuning.tasks.base import Evidence, FinetuningTask, ModelInputs, Ranking, TableExamples, join


NUM_SHOWN = 6  # our choice: as many columns as fit a screen
NUM_SAVED, SAVED_PX = 4, 1024  # our choice: a row of thumbnails, larger than most models take
IMAGE_INCHES = 1.9
CONFUSION, CURVES, WORST = "confusion.png", "precision_recall.png", "worst.png"
NO_THRESHOLD = 0.5  # of classes that no validation image has
MAX_CLASSES = 30  # our choice: more names cannot be read
MAX_CURVES = 10  # our choice: as many colors as matplotlib tells apart
LABEL_CHARACTERS = 20  # our choice: longer names go on in the next line
SMALL_MATRIX = 12  # our choice: numbers are printed for at most this many classes


class PredictedExamples(NamedTuple):
    """Images of a split with the predictions of a model, on the CPU.

    Attributes:
        images: RGB in [0, 1], `(count, 3, height, width)`; of several sizes each alone.
        predictions: Predictions of `FinetuningTask.compare`.
        references: Ground truth in the layout of the predictions.
    """

    images: Tensor | Sequence[Tensor]
    predictions: Tensor
    references: Tensor


def predict_examples(
    task: FinetuningTask,
    model: nn.Module,
    examples: TableExamples,
    count: int = NUM_SHOWN,
    rows: Sequence[int] | None = None,
) -> PredictedExamples:
    """Run a model, which stays in evaluation mode, on images spread evenly over a split.

    The first images might be all of one class.

    Args:
        task: The task.
        model: The task's model, with or without adapters.
        examples: The split.
        count: Number of images; fewer if the split has fewer.
        rows: Indices of the images, in place of a number.
    """
    count = min(count, len(examples))
    rows = [index * len(examples) // count for index in range(count)] if rows is None else rows
    batch = task.collate([examples[index] for index in rows])
    batch = cast(ModelInputs, send_to_device(batch, next(model.parameters()).device))
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        outputs = model.eval()(**inputs)
    predictions, references = task.compare(outputs, batch)
    return PredictedExamples(
        shown_in_rgb(batch["pixel_values"].cpu(), task.settings), predictions.cpu(), references.cpu()
    )


@on_any_background
def draw_predictions(
    task: FinetuningTask,
    images: Tensor | Sequence[Tensor],
    references: Tensor,
    predictions: Mapping[str, Tensor],
    notes: Sequence[str] | None = None,
) -> Figure:
    """Return a figure with a column for each image: the truth, then a row for each model.

    Where the truth covers the image, a row above shows the image alone.

    Args:
        task: The task.
        images: RGB in [0, 1], as in `PredictedExamples`.
        references: The truth, as in `PredictedExamples`.
        predictions: Predictions of each model by its title.
        notes: Remarks on the predictions for each image, above them.
    """
    rows, columns = task.covers_image + 1 + len(predictions), len(images)
    figure = Figure(figsize=(columns * IMAGE_INCHES, rows * IMAGE_INCHES), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for column, image in enumerate(each.movedim(0, -1) for each in images):
        *bare, truth = grid[: task.covers_image + 1, column]
        others = grid[task.covers_image + 1 :, column]
        for ax in bare:
            ax.set_title("image", fontsize=7)
            ax.imshow(image.numpy())
        truth.set_title("truth", fontsize=7)
        task.draw_truth(truth, image, references[column])
        for ax, (title, predicted) in zip(others, predictions.items(), strict=True):
            ax.set_title(title if notes is None else f"{title}: {notes[column]}", fontsize=7)
            task.draw_prediction(ax, image, predicted[column], references[column])
        for ax in grid[:, column]:
            if ax.images:  # a chart needs its axes
                ax.set_axis_off()
                ax.set(xticks=[], yticks=[])  # else they are laid out, which takes a quarter of the time
    legend = task.legend([references, *predictions.values()])
    if legend:
        figure.legend(handles=legend, fontsize=7, loc="outside lower center", ncols=min(len(legend), NUM_SHOWN))
    return figure


def gather_evidence(task: FinetuningTask, model: nn.Module, examples: TableExamples) -> Evidence:
    """Run a model on all images of a split, on every rank: a sharded model gathers its weights as it runs."""
    return join(itertools.starmap(task.evidence, compared_batches(task, model, examples)))


def compared_batches(
    task: FinetuningTask, model: nn.Module, examples: TableExamples, batch_size: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a model on all images of a split; yield the predictions and references of each batch, on the CPU.

    Args:
        task: The task.
        model: The task's model, with or without adapters; it stays in evaluation mode.
        examples: The split.
        batch_size: Images of a batch; by default that of the settings.
    """
    settings, device = task.settings, next(model.parameters()).device
    workers = settings.num_workers
    loader = DataLoader(examples, batch_size or settings.batch_size, collate_fn=task.collate, num_workers=workers)
    model.eval()
    for batch in tqdm(loader, desc="examination", leave=False):
        inputs = cast(ModelInputs, send_to_device(batch, device))
        with torch.no_grad():
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        predictions, references = task.compare(outputs, inputs)
        yield predictions.cpu(), references.cpu()


def fit_thresholds(task: FinetuningTask, evidence: Evidence) -> dict[str, Any]:
    """Return the `thresholds` of the classes and their `f1_at_thresholds`, each by the name of the class.

    Only for tasks whose images may have several or no classes; for others the result is empty.
    """
    if evidence.ranking is None or not task.has_thresholds:
        return {}
    found = zip(("thresholds", "f1_at_thresholds"), best_thresholds(evidence.ranking), strict=True)
    return {name: dict(zip(task.class_names, values, strict=True)) for name, values in found}


def best_thresholds(ranking: Ranking) -> tuple[list[float], list[float]]:
    """Return the threshold of each class with the best F1, and that F1.

    A threshold lies between two scores. Classes without an object get `NO_THRESHOLD` and an F1 of 0.
    """
    thresholds, measured = [NO_THRESHOLD] * len(ranking.num_truths), [0.0] * len(ranking.num_truths)
    for number in ranking.occurring():
        scores, hits = ranking.of_class(number)
        if not len(scores):
            continue
        f1 = 2 * hits / (torch.arange(1, len(scores) + 1) + ranking.num_truths[number])
        lower = torch.cat([scores[1:], scores.new_zeros(1)])
        f1 = f1.where(scores > lower, -1.0)  # no threshold separates predictions of one score
        f1[-1] = f1[-1].clamp(min=0)
        best = int(f1.argmax())
        thresholds[number], measured[number] = float((scores[best] + lower[best]) / 2), float(f1[best])
    return thresholds, measured


@on_any_background
def draw_examination(
    task: FinetuningTask, model: nn.Module, examples: TableExamples, evidence: Evidence, folder: Path
) -> None:
    """Write the figures of a task; all ranks call it, and the first one writes."""
    found = predict_examples(task, model, examples, rows=worst_images(evidence))
    if PartialState().is_main_process:
        for name, figure in examination_figures(task, evidence, found).items():
            write_file(folder / name, figure.savefig)


def worst_images(evidence: Evidence) -> list[int]:
    """Return the images with the largest errors, the worst first."""
    return evidence.errors.argsort(descending=True, stable=True)[:NUM_SHOWN].tolist()


@on_any_background
def examination_figures(task: FinetuningTask, evidence: Evidence, found: PredictedExamples) -> dict[str, Figure]:
    """Return the figures of a task by the name of their file.

    Args:
        task: The task.
        evidence: Errors on all images.
        found: The images of `worst_images`.
    """
    figures = {}
    if evidence.confusion is not None:
        figures[CONFUSION] = draw_confusion(evidence.confusion, task.class_names)
    if evidence.ranking is not None and evidence.ranking.num_truths.any():
        figures[CURVES] = draw_precision_recall(evidence.ranking, task.class_names)
    errors, worst = evidence.errors, worst_images(evidence)
    are_right = [task.is_right(*pair) for pair in zip(found.predictions, found.references, strict=True)]
    words = {None: "", True: ", right", False: ", wrong"}
    notes = [f"{float(errors[row]):.3g}{words[is_right]}" for row, is_right in zip(worst, are_right, strict=True)]
    figure = draw_predictions(task, found.images, found.references, {task.error_name: found.predictions}, notes)
    which = f"The {len(worst)} of {len(errors)} images with the largest {task.error_name}"
    figure.suptitle(f"{which} (median of all: {float(errors.median()):.3g})", fontsize=8)
    return {**figures, WORST: figure}


def save_images(examples: TableExamples, folder: Path) -> None:
    """Write some images in their own shape, evenly spread over a split, for whoever looks at the model."""
    num_rows = len(examples.rows)
    rows = [number * num_rows // NUM_SAVED for number in range(NUM_SAVED)] if num_rows > NUM_SAVED else range(num_rows)

    def write(scratch: Path) -> None:
        for number, row in enumerate(rows):
            stored, where = read_row(examples.rows, row, examples.name)["image"], f"{examples.name} {row}"
            pixels = examples.task.read_image(stored, where)[None]
            image = to_pil_image(shown_in_rgb(pixels, examples.task.settings)[0])
            image.thumbnail((SAVED_PX, SAVED_PX))
            image.save(scratch / f"{number}.jpg", quality=95)

    write_folder(folder, write)


@on_any_background
def draw_confusion(confusion: Tensor, names: Sequence[str]) -> Figure:
    """Return a figure of the share of each true class that was predicted as each class; of many classes the worst.

    Args:
        confusion: Counts, `(num_classes, num_classes)`, rows for true classes.
        names: Names of the classes.
    """
    num_images = confusion.sum(dim=1)
    shares = confusion.double() / num_images[:, None]  # NaN, which is not drawn, without images
    worst = shares.diag().nan_to_num(2.0).argsort(stable=True)[:MAX_CLASSES].sort().values
    shown = shares[worst][:, worst].numpy()
    labels = [textwrap.fill(names[number], LABEL_CHARACTERS) for number in worst.tolist()]
    true_labels = [
        label + ("" if num_images[number] else " (no images)")
        for number, label in zip(worst.tolist(), labels, strict=True)
    ]
    side = max(4.0, 0.3 * len(labels) + 2)
    figure = Figure(figsize=(side, side), dpi=150, layout="constrained")
    ax = figure.subplots()
    ax.imshow(shown, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(labels))
    ax.set_xticks(ticks, labels, rotation=90, fontsize=8)
    ax.set_yticks(ticks, true_labels, fontsize=8)
    left_out = f"\nthe {len(labels)} least often right of {len(names)}" if len(labels) < len(names) else ""
    title = f"Share of each true class. Higher is better\non the diagonal, lower elsewhere{left_out}"
    ax.set(xlabel="predicted class", ylabel="true class")
    figure.suptitle(title, fontsize=9)
    if len(labels) <= SMALL_MATRIX:
        for (row, column), share in np.ndenumerate(shown):
            if not np.isnan(share):
                color = "white" if share > 0.5 else "black"
                ax.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=color)
    return figure


def precision_and_recall(ranking: Ranking, number: int) -> tuple[Tensor, Tensor]:
    """Return precision and recall of a class at each of its predictions, from the most certain down."""
    _, hits = ranking.of_class(number)
    return hits / torch.arange(1, len(hits) + 1), hits / ranking.num_truths[number].clamp(min=1)


def average_precision(precision: Tensor, recall: Tensor) -> float:
    """Return the mean precision over recall, as scikit-learn defines it: weighted by each gain of recall."""
    gains = torch.cat([recall[:1], recall.diff()])
    return float((precision * gains).sum())


@on_any_background
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
