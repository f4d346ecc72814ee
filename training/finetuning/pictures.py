"""Pictures of validation images: the truth, and below it what each of some models predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from accelerate.utils import send_to_device
from matplotlib.figure import Figure
from torch import Tensor, nn

from training.finetuning.tasks.base import Batch, FinetuningTask
from training.finetuning.tasks.examples import Examples


NUM_PICTURED = 6  # our choice: as many columns as fit a screen
PICTURE_INCHES = 1.9


class PredictedExamples(NamedTuple):
    """Images of a split with what a model makes of them, on the CPU.

    Attributes:
        images: RGB in [0, 1], `(count, 3, height, width)`.
        predictions: As `FinetuningTask.compare` gives them.
        references: Ground truth, laid out as the predictions.
    """

    images: Tensor
    predictions: Tensor
    references: Tensor


def predict_examples(
    task: FinetuningTask,
    model: nn.Module,
    examples: Examples,
    count: int = NUM_PICTURED,
    rows: Sequence[int] | None = None,
) -> PredictedExamples:
    """Run a model, which stays in evaluation mode, on images spread evenly over a split.

    The first ones might be all of one class.

    Args:
        task: Joins the examples and reads the outputs.
        model: The task's model, with or without adapters.
        examples: The split.
        count: Number of images; fewer if the split has fewer.
        rows: The images themselves, in place of a number.
    """
    count = min(count, len(examples))
    rows = [index * len(examples) // count for index in range(count)] if rows is None else rows
    batch = task.collate([examples[index] for index in rows])
    batch = cast(Batch, send_to_device(batch, next(model.parameters()).device))
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        outputs = model.eval()(**inputs)
    predictions, references = task.compare(outputs, batch)
    return PredictedExamples(batch["pixel_values"].cpu(), predictions.cpu(), references.cpu())


def draw_predictions(
    task: FinetuningTask, images: Tensor, references: Tensor, predictions: Mapping[str, Tensor]
) -> Figure:
    """Return a figure with a column for each image: the truth, then a row for each model.

    Where the truth covers the image, a row above shows it bare.

    Args:
        task: Draws.
        images: RGB in [0, 1], `(count, 3, height, width)`.
        references: The truth, as in `PredictedExamples`.
        predictions: Those of each model by its title.
    """
    rows, columns = task.covers_image + 1 + len(predictions), len(images)
    figure = Figure(figsize=(columns * PICTURE_INCHES, rows * PICTURE_INCHES), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for column, image in enumerate(images.movedim(1, -1)):
        *bare, truth = grid[: task.covers_image + 1, column]
        others = grid[task.covers_image + 1 :, column]
        for ax in bare:
            ax.set_title("image", fontsize=7)
            ax.imshow(image.numpy())
        truth.set_title("truth", fontsize=7)
        task.draw_truth(truth, image, references[column])
        for ax, (title, predicted) in zip(others, predictions.items(), strict=True):
            ax.set_title(title, fontsize=7)
            task.draw_prediction(ax, image, predicted[column], references[column])
        for ax in grid[:, column]:
            if ax.images:  # a chart needs its axes
                ax.set_axis_off()
                ax.set(xticks=[], yticks=[])  # else they are laid out, which takes a quarter of the time
    return figure
