"""Rows of a task's images as model inputs: of tables by number, of streams in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from foundation.seeds import derive_seed
from training.data.labeled.opening import encoded, read_row
from training.finetuning.data.augmentation import build_transform
from training.finetuning.data.rare_classes import draw_images, epoch_length, image_weights
from training.finetuning.data.streams import LabeledStream
from training.finetuning.tasks.base import Batch, FinetuningTask


TaskType = TypeVar("TaskType", bound=FinetuningTask)


class Examples(Dataset[Batch], Generic[TaskType]):
    """Rows as model inputs. Item `index` depends on (seed, epoch, index) alone, so that a resumed run repeats it.

    Args:
        rows: The table, columns `image` and `target`.
        task: Reads rows and encodes labels.
        transform: Of samples; draws from torch's global generator.
        seed: Of the augmentation.
        name: For messages, such as "training image".
        weights: How often each row is wanted an epoch, `(num_rows,)`; `None` for once.
    """

    def __init__(
        self,
        rows: Any,
        task: TaskType,
        transform: torch.nn.Module,
        seed: int,
        name: str,
        weights: torch.Tensor | None = None,
    ):
        self.rows, self.task, self.transform, self.seed, self.name = encoded(rows), task, transform, seed, name
        self.weights = weights
        self.epoch = 0
        self._drawn: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.weights is None else epoch_length(self.weights)

    def row_of(self, index: int) -> int:
        """Return the row that stands for an index in this epoch."""
        if self.weights is None:
            return index
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "sampler", self.epoch))
            self._drawn = self.epoch, draw_images(self.weights, generator).tolist()
        return self._drawn[1][index]

    def __getitem__(self, index: int) -> Batch:
        row = self.row_of(index)
        values = read_row(self.rows, row, self.name)
        return build_example(self.task, self.transform, values, f"{self.name} {row}", (self.seed, self.epoch, index))


class StreamedExamples(IterableDataset[Batch], Generic[TaskType]):
    """The rows of a stream as model inputs, without end.

    Args:
        stream: The rows.
        task: Reads rows and encodes labels.
        transform: Of samples; draws from torch's global generator.
        seed: Of the augmentation.
        name: For messages, such as "training image".
    """

    def __init__(self, stream: LabeledStream, task: TaskType, transform: torch.nn.Module, seed: int, name: str):
        self.stream, self.task, self.transform, self.seed, self.name = stream, task, transform, seed, name

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        reader = (self.seed, self.stream.rank, 0 if worker is None else worker.id)
        for index, row in enumerate(self.stream.rows()):
            yield build_example(self.task, self.transform, row, f"{self.name} {index}", (*reader, index))


def build_example(
    task: FinetuningTask, transform: torch.nn.Module, row: Mapping[str, Any], where: str, draw: Sequence[int]
) -> Batch:
    """Return a row as model inputs.

    Args:
        task: Reads the row and encodes its labels.
        transform: Of the sample; draws from torch's global generator.
        row: `image` and `target`.
        where: Names the image in errors.
        draw: Seeds the augmentation.
    """
    sample = task.read(row, where)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(draw[0], "augmentation", *draw[1:]))
        sample = transform(sample)
    return {"pixel_values": sample["image"].as_subclass(torch.Tensor), "labels": task.labels(sample)}


def build_examples(task: TaskType, rows: Any, name: str, *, is_training: bool) -> Examples[TaskType]:
    """Return the table of a split as model inputs; `name` is for messages."""
    settings, weights = task.settings, None
    if is_training and settings.sampler is not None:
        classes = task.classes_of(rows, name)
        if classes is None:
            raise ValueError(
                f"`sampler` {settings.sampler!r} is for classes, but the labels are numbers: leave it out."
            )
        weights = image_weights(settings.sampler, classes, len(task.class_names), settings.repeat_threshold)
    transform = build_transform(settings, task.size, is_training=is_training)
    return Examples(rows, task, transform, settings.seed, name, weights)


def build_training_examples(task: TaskType) -> Examples[TaskType] | StreamedExamples[TaskType]:
    """Return the training images of a task as model inputs."""
    name = "training image"
    if task.images.stream is None:
        return build_examples(task, task.images.train, name, is_training=True)
    transform = build_transform(task.settings, task.size, is_training=True)
    return StreamedExamples(task.images.stream, task, transform, task.settings.seed, name)
