"""Pictures of validation images: the truth, and beside it what each of some models predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from accelerate.utils import send_to_device
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from training.finetuning.task import Batch, Examples, FinetuningTask


NUM_PICTURED = 6  # our choice: as many rows as fit a screen
PICTURE_INCHES = 1.9


class PredictedExamples(NamedTuple):
    """The first images of a split with what a model makes of them, on the CPU.

    Attributes:
        images: RGB in [0, 1], `(count, 3, height, width)`.
        predictions: As `FinetuningTask.compare` gives them.
        references: As there.
    """

    images: Tensor
    predictions: Tensor
    references: Tensor


def predict_examples(
    task: FinetuningTask, model: nn.Module, examples: Examples, count: int = NUM_PICTURED
) -> PredictedExamples:
    """Run a model, which stays in evaluation mode, on the first images of a split.

    Args:
        task: Joins the examples and reads the outputs.
        model: The task's model, with or without adapters.
        examples: The split.
        count: Number of images; fewer if the split has fewer.
    """
    batch = task.collate([examples[index] for index in range(min(count, len(examples)))])
    batch = cast(Batch, send_to_device(batch, next(model.parameters()).device))
    with torch.no_grad():
        outputs = model.eval()(**batch)
    predictions, references = task.compare(outputs, batch)
    return PredictedExamples(batch["pixel_values"].cpu(), predictions.cpu(), references.cpu())


def draw_predictions(
    task: FinetuningTask, images: Tensor, references: Tensor, predictions: Mapping[str, Tensor]
) -> Figure:
    """Return a figure with a row for each image: the truth, then a column for each model.

    Args:
        task: Draws.
        images: RGB in [0, 1], `(count, 3, height, width)`.
        references: The truth, as in `PredictedExamples`.
        predictions: Those of each model by the title of its column.
    """
    columns = 1 + len(predictions)
    figure = Figure(figsize=(columns * PICTURE_INCHES, len(images) * PICTURE_INCHES), dpi=150, layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images.movedim(1, -1)):
        truth, *others = cast("list[Axes]", list(grid[row]))
        truth.set_title("truth", fontsize=7)
        task.draw_truth(truth, image, references[row])
        for ax, (title, predicted) in zip(others, predictions.items(), strict=True):
            ax.set_title(title, fontsize=7)
            task.draw_prediction(ax, image, predicted[row], references[row])
        for ax in grid[row]:
            if ax.images:  # a chart needs its axes
                ax.set_axis_off()
    return figure
