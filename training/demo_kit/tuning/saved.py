"""What runs of the comparison saved, opened again as a user would, and how well it knows the images it was tuned on."""

from __future__ import annotations

import torch
from torch import nn

from modeling_radio import RadioConfig
from training.finetuning.adapters import open_adapter
from training.finetuning.data.sources import load_images
from training.finetuning.models import open_task_model
from training.finetuning.pictures import predict_examples
from training.finetuning.run import FINAL
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.base import FinetuningTask
from training.finetuning.tasks.examples import build_examples
from training.finetuning.tasks.registry import build_task


def reopen(task: FinetuningTask, settings: FinetuneSettings) -> nn.Module:
    """Open what a run saved, and let the task take from it what it needs.

    Args:
        task: Of the run.
        settings: Of the run.
    """
    final = settings.output / FINAL
    opened = str(final) if not settings.uses_adapter else settings.checkpoint
    model = open_task_model(task, opened, config=RadioConfig.from_pretrained(final))
    task.prepare(model)
    return open_adapter(model, final) if settings.uses_adapter else model


def measure_training_images(settings: FinetuneSettings) -> dict[str, float]:
    """Return a saved model's metrics on as many training images as there are validation images, not augmented.

    Where they are far above those of validation images, the model has learned its images by heart.

    Args:
        settings: Of the run, which is finished.
    """
    images = load_images(settings)
    task = build_task(settings, images)
    examples = build_examples(task, images.train, "training image", is_training=False)
    count = min(len(images.validation), len(examples))
    rows = [index * len(examples) // count for index in range(count)]
    model, score = reopen(task, settings), task.build_score()
    size = settings.batch_size
    for start in range(0, count, size):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
            found = predict_examples(task, model, examples, rows=rows[start : start + size])
        score.update(found.predictions, found.references)
    return {name: float(value) for name, value in score.compute().items()}
