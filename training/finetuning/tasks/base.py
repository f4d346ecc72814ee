"""What the trainer asks of a task: to read rows, to score outputs and to draw predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from matplotlib.axes import Axes
from PIL.ImageFile import ImageFile
from torch import Tensor
from torchvision import tv_tensors
from transformers import PreTrainedTokenizerBase

from modeling_radio import RadioConfig, RadioPreTrainedModel
from modeling_radio.image_processing_radio import RadioImageProcessor
from training.finetuning.data.augmentation import Sample
from training.finetuning.data.sources import LabeledImages
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks.evidence import Evidence


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
        covers_image: Whether drawings of truth and predictions hide the image below them.
        loss_function: Of outputs, labels and `num_items_in_batch`; `None` where the model computes it.
        adapter_learning_rate: Peak learning rate of adapters on a ViT-B where the settings give none.
        full_learning_rate: The same of the backbone itself.
        head_learning_rate: Peak learning rate of the head where the settings give none; of a linear head on a ViT-B.
        max_grad_norm: What gradients are clipped to where the settings give none.
        class_names: In the order of their ids; empty where the task has no classes.
    """

    model_class: ClassVar[type[RadioPreTrainedModel]]
    best_metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = True
    has_thresholds: ClassVar[bool] = False
    covers_image: ClassVar[bool] = False
    loss_function: ClassVar[Callable[..., Tensor] | None] = None
    # Our choices, the usual peaks of AdamW for adapters, which start from zero, and for weights that are good already.
    # docs/tuning_study.md measures them, scaled to the width, on a small backbone.
    adapter_learning_rate: ClassVar[float] = 5e-4
    full_learning_rate: ClassVar[float] = 5e-5
    head_learning_rate: ClassVar[float] = 1e-3  # our choice for heads that start from random weights
    max_grad_norm: ClassVar[float] = 1.0  # our choice, and the usual one

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        self.settings = settings
        self.images = images
        self.class_names = images.class_names
        self.processor = RadioImageProcessor()

    @classmethod
    def has_linear_head(cls, config: RadioConfig) -> bool:
        """Return whether the head is one layer on the backbone, whose learning rate follows the backbone's width."""
        return False

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

    def classes_of(self, rows: Any, name: str) -> list[list[int]] | None:
        """Return the ids of what each image of a table shows, one for each label; `None` for a task without classes.

        Args:
            rows: Columns `image` and `target`.
            name: For messages, such as "training image".

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


def with_file(where: str, picture: Any) -> str:
    """Return the name of an image with the file of a picture, if it was opened from one: a split shuffles the rows."""
    return f"{where} ({picture.filename})" if isinstance(picture, ImageFile) and picture.filename else where


def require_same_size(image: Tensor, target: Tensor, where: str, name: str) -> None:
    """Raise a `ValueError` if a map `(height, width)` is not as large as its image `(3, height, width)`."""
    if image.shape[-2:] != target.shape[-2:]:
        sizes = [" x ".join(map(str, tensor.shape[-2:])) for tensor in (target, image)]
        raise ValueError(f"The {name} of {where} has {sizes[0]} pixels but its image {sizes[1]} (height x width).")
