"""What the trainer asks of a task: to read rows, to score outputs and to draw predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from transformers import PreTrainedTokenizerBase

from foundation.seeds import derive_seed
from modeling_radio import RadioPreTrainedModel
from modeling_radio.image_processing_radio import RadioImageProcessor
from training.data.labeled.readable import image_paths
from training.finetuning.data.augmentation import Sample, build_transform
from training.finetuning.data.label_counts import LabelCounts, count_classes
from training.finetuning.data.sampling import draw_images, epoch_length, image_weights
from training.finetuning.data.sources import LabeledImages
from training.finetuning.examination.evidence import Evidence, Ranking
from training.finetuning.settings import FinetuneSettings


MAX_COUNTED_MASKS = 500  # our choice: enough for shares of classes to a percent, and seconds to read

Batch = dict[str, Any]
"""`pixel_values` `(batch, 3, height, width)` in [0, 1], and `labels` as the task's model takes them."""


class Score(Protocol):
    """What the trainer calls on a metric; torchmetrics' classes fit."""

    def update(self, predictions: Tensor, references: Tensor) -> None: ...

    def compute(self) -> Mapping[str, Tensor]: ...

    def reset(self) -> None: ...


class FinetuningTask(ABC):
    """One task on one data source.

    Args:
        settings: The run's settings.
        images: The labeled images.

    Attributes:
        model_class: The task's model.
        best_metric: The metric by which the best checkpoint is chosen.
        greater_is_better: Whether more of it is better.
        has_thresholds: Whether an answer counts from a certainty on, since an image may have several or none.
        loss_function: Of outputs, labels and `num_items_in_batch`; `None` where the model computes it.
        head_learning_rate: Peak learning rate of the head where the settings give none.
        class_names: In the order of their ids; empty where the task has no classes.
    """

    model_class: ClassVar[type[RadioPreTrainedModel]]
    best_metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = True
    has_thresholds: ClassVar[bool] = False
    loss_function: ClassVar[Callable[..., Tensor] | None] = None
    head_learning_rate: ClassVar[float] = 1e-3  # our choice for heads that start from random weights

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        self.settings = settings
        self.images = images
        self.class_names = images.class_names
        self.processor = RadioImageProcessor()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of model inputs, in pixels."""
        assert self.settings.size is not None  # the run fills it in
        return self.settings.size

    @abstractmethod
    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        """Return one row of the table as a sample; a `ValueError` names `where` if it cannot be right."""

    @abstractmethod
    def labels(self, sample: Sample) -> Any:
        """Return the labels of a transformed sample as the model takes them."""

    @abstractmethod
    def compare(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return predictions and references as tensors of equal batch size, to score and to draw."""

    @abstractmethod
    def build_score(self) -> Score:
        """Return the task's metrics, empty."""

    @abstractmethod
    def evidence(self, predictions: Tensor, references: Tensor) -> Evidence:
        """Return what a batch says, image by image; arguments as `compare` returns them."""

    def calibrated(self, ranking: Ranking, temperature: float) -> Ranking:
        """Return a ranking whose scores are those of logits that were divided by a temperature."""
        return (
            ranking if temperature == 1 else replace(ranking, scores=(ranking.scores.logit() / temperature).sigmoid())
        )

    @abstractmethod
    def draw_truth(self, ax: Axes, image: Tensor, reference: Tensor) -> None:
        """Draw one image `(height, width, 3)` with its truth."""

    @abstractmethod
    def draw_prediction(self, ax: Axes, image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        """Draw what a model makes of one image, on the scale of its truth."""

    def prepare(self, model: RadioPreTrainedModel) -> None:  # noqa: B027  (most tasks need nothing)
        """Take from the model what the task needs of it, before anything is trained."""

    def extras(self) -> list[PreTrainedTokenizerBase]:
        """Return what else belongs into the folder of a tuned model."""
        return []

    def classes_of(self, rows: Any, name: str, limit: int | None = None) -> list[list[int]] | None:
        """Return the ids of what each image of a table shows, one for each label; `None` for a task without classes.

        Args:
            rows: Columns `image` and `target`.
            name: For messages, such as "training image".
            limit: Look at so many images where each takes time to read.

        Raises:
            ValueError: If a label is none of a class.
        """
        return None

    def config_fields(self) -> dict[str, Any]:
        """Return what the model's configuration must know of the data."""
        names = dict(enumerate(self.class_names))
        numbers = {name: number for number, name in names.items()}
        earlier = {"class_weights": None, "temperature": 1.0, "score_thresholds": None}  # forgotten
        return {"id2label": names, "label2id": numbers, **earlier}

    def collate(self, examples: Sequence[Batch]) -> Batch:
        """Join examples into a batch."""
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.stack([example["labels"] for example in examples]),
        }

    def read_image(self, image: Any, where: str) -> tv_tensors.Image:
        """Return any picture as uint8 RGB, as the processor reads it."""
        try:
            pixels = self.processor.process_image(image, do_convert_rgb=True)
        except ValueError as error:
            raise ValueError(f"The image of {where} cannot be read: {error}") from error
        return tv_tensors.Image(pixels.round().to(torch.uint8))


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
        self.rows, self.task, self.transform, self.seed, self.name = rows, task, transform, seed, name
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
        sample = self.task.read(read_row(self.rows, row, self.name), f"{self.name} {row}")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, "augmentation", self.epoch, index))
            sample = self.transform(sample)
        return {"pixel_values": sample["image"].as_subclass(torch.Tensor), "labels": self.task.labels(sample)}


def read_row(rows: Any, index: int, name: str) -> Mapping[str, Any]:
    """Return a row with its pictures decoded; `name` is for messages.

    Raises:
        ValueError: If one cannot be decoded; the message names its file.
    """
    try:
        return rows[index]
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on broken files
        paths = [path for column in rows.column_names for path in image_paths(rows.select([index]), column) if path]
        where = f"{name} {index}" + (f" ({', '.join(paths)})" if paths else "")
        raise ValueError(
            f"The pictures of {where} cannot be decoded: {error}. Replace the file, or remove it."
        ) from error


def require_same_size(image: Tensor, target: Tensor, where: str, name: str) -> None:
    """Raise a `ValueError` if a map `(height, width)` is not as large as its image `(3, height, width)`."""
    if image.shape[-2:] != target.shape[-2:]:
        sizes = [" x ".join(map(str, tensor.shape[-2:])) for tensor in (target, image)]
        raise ValueError(f"The {name} of {where} has {sizes[0]} pixels but its image {sizes[1]} (height x width).")


def count_labels(task: FinetuningTask) -> LabelCounts | None:
    """Return which classes the images of a task show, of masks the first ones; `None` for a task without classes.

    Raises:
        ValueError: If a label is none of a class.
    """
    splits = {"training image": task.images.train, "validation image": task.images.validation}
    counts = []
    for name, rows in splits.items():
        classes = task.classes_of(rows, name, MAX_COUNTED_MASKS)
        if classes is None:
            return None
        counts.append(count_classes(classes, len(task.class_names), len(rows)))
    return LabelCounts(task.class_names, *counts)


def build_examples(task: TaskType, rows: Any, name: str, *, is_training: bool) -> Examples[TaskType]:
    """Return a split of a task as model inputs; `name` is for messages."""
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
