"""Interface of tasks, which read rows, score outputs and draw predictions; and their examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import PreTrainedTokenizerBase

from modeling_radio import RadioConfig, RadioPreTrainedModel
from modeling_radio.checks_radio import Resolution
from modeling_radio.core.seeds import derive_seed
from modeling_radio.data.arrays import read_channels
from modeling_radio.data.labeled.images import LabeledImages, LabeledStream, Targets
from modeling_radio.data.labeled.tables import encoded, read_row
from modeling_radio.heads_radio import ProblemType
from modeling_radio.image_processing_radio import RadioImageProcessor, to_eight_bits
from modeling_radio.tuning.data import Sample, build_transform, draw_images, epoch_length, image_weights
from modeling_radio.tuning.settings import FinetuneSettings, TaskDataSettings


@dataclass(frozen=True)
class Ranking:
    """Predictions of a class, each with its score, and whether it is right.

    Attributes:
        classes: Ids, `(num_predictions,)`.
        scores: In [0, 1], `(num_predictions,)`.
        hits: Booleans, `(num_predictions,)`.
        num_truths: Number of objects or images of each class, `(num_classes,)`.
    """

    classes: Tensor
    scores: Tensor
    hits: Tensor
    num_truths: Tensor

    def of_class(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the scores of a class, from the best down, and the hits among the predictions down to each."""
        chosen = self.classes == number
        scores, order = self.scores[chosen].double().sort(descending=True, stable=True)
        return scores, self.hits[chosen][order].cumsum(0)

    def occurring(self) -> Iterator[int]:
        """Yield the classes of at least one object or image."""
        yield from self.num_truths.nonzero().flatten().tolist()


@dataclass(frozen=True)
class Evidence:
    """Errors of a model on some images.

    Attributes:
        errors: Error of each image, `(num_images,)`; more is worse.
        ranking: Predictions of classes, for tasks that have them.
        confusion: Predictions of each class for each true one, `(num_classes, num_classes)`, rows for true classes.
    """

    errors: Tensor
    ranking: Ranking | None = None
    confusion: Tensor | None = None


def join(batches: Iterable[Evidence]) -> Evidence:
    """Return the joined evidence of several batches of one task; only the sum of confusions is kept in memory."""
    parts, confusion = [], None
    for batch in batches:
        if batch.confusion is not None:
            confusion = batch.confusion if confusion is None else confusion + batch.confusion
        parts.append(replace(batch, confusion=None))
    rankings = [part.ranking for part in parts if part.ranking is not None]
    ranking = None
    if rankings:
        joined = {name: torch.cat([getattr(each, name) for each in rankings]) for name in ("classes", "scores", "hits")}
        ranking = Ranking(**joined, num_truths=torch.stack([each.num_truths for each in rankings]).sum(0))
    return Evidence(torch.cat([part.errors for part in parts]), ranking, confusion)


def rank_classes(scores: Tensor, truths: Tensor, most: int | None = None) -> Ranking:
    """Return the ranking of images with a score for every class.

    Args:
        scores: In [0, 1], `(num_images, num_classes)`.
        truths: Whether an image has a class, of the same shape.
        most: Number of the most probable classes of an image that are kept; None keeps all.
    """
    num_classes = scores.shape[1]
    kept, classes = scores.topk(min(most or num_classes, num_classes), dim=1)
    hits = truths.bool().gather(1, classes)
    return Ranking(classes.flatten(), kept.flatten(), hits.flatten(), truths.long().sum(0))


def count_confusion(predicted: Tensor, true: Tensor, num_classes: int) -> Tensor:
    """Return the number of predictions of each class for each true one, from ids of one shape."""
    pairs = true.flatten().long() * num_classes + predicted.flatten().long()
    return pairs.bincount(minlength=num_classes**2).unflatten(0, (num_classes, num_classes))


ModelInputs = dict[str, Any]
"""`pixel_values` `(batch, 3, height, width)` in [0, 1], and `labels` in the format of the task's model."""


LinearLoss = Callable[[Tensor, Tensor], Tensor]
"""Loss of each row, `(rows,)`, of logits and targets `(rows, outputs)`; convex in the logits."""


def cross_entropy_of_shares(logits: Tensor, targets: Tensor, class_weights: Sequence[float] | None) -> Tensor:
    """Return the cross-entropy of each row with its shares of the classes, each times the weight of the class."""
    weighted = targets if class_weights is None else targets * targets.new_tensor(class_weights)
    return -(weighted * logits.log_softmax(1)).sum(1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of each row."""
    return (outputs - targets).square().sum(1)


class Score(Protocol):
    """Interface of metrics, that of torchmetrics."""

    def update(self, predictions: Tensor, references: Tensor) -> None: ...

    def compute(self) -> Mapping[str, Tensor]: ...

    def reset(self) -> None: ...


class FinetuningTask(ABC):
    """One task on one data source.

    Args:
        settings: Settings of the task and its images; in a run of `radio finetune` all of the run.
        images: The labeled images.

    Attributes:
        model_class: Class of the task's model.
        targets: Kind of its labels.
        best_metric: Name of the metric that chooses the best checkpoint.
        greater_is_better: Whether more of it is better.
        has_thresholds: Whether an image may have several or no classes, so that predictions need a threshold.
        takes_class_weights: Whether the loss weighs classes.
        window_field: Field of the configuration for the head's own window of the backbone; `None` for the backbone's.
        error_name: Name of the errors of `evidence`, for figures.
        covers_image: Whether drawings of truth and predictions hide the image below them.
        loss_function: Function of outputs, labels and `num_items_in_batch`; `None` if the model computes its loss.
        adapter_learning_rate: Default peak learning rate of adapters on a ViT-B.
        full_learning_rate: The same of the backbone itself.
        convolutional_learning_rate: The same of a backbone with batch norms, of any width; `None` if it was not tried.
        head_learning_rate: Default peak learning rate of the head; of a linear head on a ViT-B.
        max_grad_norm: Default norm that gradients are clipped to.
        class_names: In the order of their ids; empty where the task has no classes.
    """

    model_class: ClassVar[type[RadioPreTrainedModel]]
    targets: ClassVar[Targets]
    best_metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = True
    has_thresholds: ClassVar[bool] = False
    takes_class_weights: ClassVar[bool] = False
    window_field: ClassVar[str | None] = None
    error_name: ClassVar[str] = "error"
    covers_image: ClassVar[bool] = False
    loss_function: ClassVar[Callable[..., Tensor] | None] = None
    # Our choices, the usual peaks of AdamW for adapters, which start from zero, and for weights that are good already.
    # docs/explanation/tuning_study.md measures them, scaled to the width, on a small backbone.
    adapter_learning_rate: ClassVar[float] = 5e-4
    full_learning_rate: ClassVar[float] = 5e-5
    convolutional_learning_rate: ClassVar[float | None] = None
    head_learning_rate: ClassVar[float] = 1e-3  # our choice for heads that start from random weights
    max_grad_norm: ClassVar[float] = 1.0  # our choice, and the usual one

    def __init__(self, settings: TaskDataSettings, images: LabeledImages):
        self.settings = settings
        self.images = images
        self.class_names = images.class_names
        self.processor = RadioImageProcessor()

    @classmethod
    def check_settings(cls, settings: TaskDataSettings) -> None:
        """Refuse settings that the task has no use for, before anything is loaded.

        Raises:
            ValueError: It names the setting.
        """
        if settings.class_weights is not None and not cls.takes_class_weights:
            raise ValueError(
                f"`class_weights` is not for {settings.task}: it has no loss over classes that takes weights."
            )
        if settings.sampler is not None and not cls.targets.have_classes:
            raise ValueError(f"`sampler` is not for {settings.task}: it has no classes.")
        if settings.streaming and not cls.targets.are_of_images:
            raise ValueError(
                f"`streaming` does not work for {settings.task}, whose labels must be read before the run."
            )

    @classmethod
    def for_labels(cls, problem_type: ProblemType | None) -> type[FinetuningTask]:
        """Return the class for the labels of a source, which may be several for whole images."""
        return cls

    @classmethod
    def has_linear_head(cls, config: RadioConfig) -> bool:
        """Return whether the head is one layer on the backbone, whose learning rate depends on the backbone's width."""
        return False

    def linear_loss(self, class_weights: Sequence[float] | None) -> LinearLoss | None:
        """Return the loss of a linear head, whose optimum is fitted; `None` for a task that has no such head.

        Args:
            class_weights: Those of the model's configuration.
        """
        return None

    def linear_targets(self, labels: Tensor, grid: Resolution | None) -> Tensor:
        """Return the targets of a linear head for labels of a batch, `(batch, outputs)`.

        Args:
            labels: Labels as the model takes them.
            grid: Rows and columns of a head that answers for each patch; it gets `(batch, patches, outputs)`.
        """
        raise NotImplementedError

    def measure(self, predictions: Tensor, references: Tensor) -> float:
        """Return the best metric of the results of `compare`."""
        score = self.build_score()
        score.update(predictions.cpu(), references.cpu())
        return float(score.compute()[self.best_metric])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of model inputs, in pixels."""
        assert self.settings.size is not None  # the run fills it in
        return self.settings.size

    @property
    def run_settings(self) -> FinetuneSettings:
        """The settings of the run that tunes a model; a model that is only measured has none."""
        assert isinstance(self.settings, FinetuneSettings)
        return self.settings

    @abstractmethod
    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        """Return a row of the table as a sample; the `ValueError` of a wrong row names `where`."""

    @abstractmethod
    def labels(self, sample: Sample) -> Any:
        """Return the labels of a transformed sample in the format of the model."""

    @abstractmethod
    def compare(self, outputs: Any, batch: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return predictions and references as tensors of equal batch size, for metrics and drawings."""

    @abstractmethod
    def build_score(self) -> Score:
        """Return new metrics of the task."""

    @abstractmethod
    def evidence(self, predictions: Tensor, references: Tensor) -> Evidence:
        """Return the errors of a batch, from the results of `compare`."""

    @abstractmethod
    def draw_truth(self, ax: Axes, image: Tensor, reference: Tensor) -> None:
        """Draw one image `(height, width, 3)` with its truth."""

    @abstractmethod
    def draw_prediction(self, ax: Axes, image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        """Draw the prediction for one image, on the scale of its truth."""

    def is_right(self, prediction: Tensor, reference: Tensor) -> bool | None:
        """Return whether the answer for an image is right; `None` where answers are right in part."""
        return None

    def legend(self, shown: Sequence[Tensor]) -> list[Patch]:
        """Return names and colors for a figure that shows these truths and predictions; none by default."""
        return []

    def check_config(self, config: RadioConfig, grid: Resolution) -> None:  # noqa: B027  (most tasks need nothing)
        """Refuse a configuration of the model that cannot be tuned.

        Args:
            config: The configuration.
            grid: Rows and columns of patches of an image.

        Raises:
            ValueError: It names the field or the setting.
        """

    def prepare(self, model: RadioPreTrainedModel) -> None:  # noqa: B027  (most tasks need nothing)
        """Check or use the model before the training."""

    def extras(self) -> list[PreTrainedTokenizerBase]:
        """Return tokenizers for the folder of a tuned model."""
        return []

    def classes_of(self, rows: Any, name: str) -> list[list[int]] | None:
        """Return the ids of the labels of each image of a table; `None` for a task without classes.

        Args:
            rows: Columns `image` and `target`.
            name: Name of an image for messages, such as "training image".

        Raises:
            ValueError: If a label is no known class.
        """
        return None

    def config_fields(self) -> dict[str, Any]:
        """Return the fields of the model's configuration that depend on the data."""
        names = dict(enumerate(self.class_names))
        numbers = {name: number for number, name in names.items()}
        earlier = {"class_weights": None, "temperature": 1.0, "score_thresholds": None}  # of an earlier tuning
        return {"id2label": names, "label2id": numbers, **earlier}

    def collate(self, examples: Sequence[ModelInputs]) -> ModelInputs:
        """Join examples into a batch."""
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.stack([example["labels"] for example in examples]),
        }

    def read_image(self, image: Any, where: str) -> tv_tensors.Image:
        """Return an image as uint8 RGB, as the processor reads it, or of `num_channels` as floats in [0, 1]."""
        if self.settings.num_channels is not None:
            try:
                return tv_tensors.Image(read_channels(image, self.settings.num_channels))
            except ValueError as error:
                raise ValueError(f"The image of {where} cannot be read: {error}") from error
        if isinstance(image, Image.Image):
            try:
                return tv_tensors.Image(pil_to_tensor(to_eight_bits(image)))
            except ValueError as error:
                raise ValueError(
                    f"The image of {with_file(where, image)} cannot be read: {error} `radio finetune --skip-damaged` "
                    "leaves it out."
                ) from error
        try:
            pixels = self.processor.process_image(image, do_convert_rgb=True)
        except ValueError as error:  # of the processor's options
            raise ValueError(
                f"The image of {where} must have 1, 3 or 4 channels of 8 or 16 bits, or of floats in [0, 255]."
            ) from error
        return tv_tensors.Image(pixels.round().to(torch.uint8))


def with_file(where: str, opened: Any) -> str:
    """Return the name of an image with the file that it was opened from, if any: a split shuffles the rows."""
    return f"{where} ({opened.filename})" if isinstance(opened, ImageFile) and opened.filename else where


def require_same_size(image: Tensor, target: Tensor, where: str, name: str) -> None:
    """Raise a `ValueError` if a map `(height, width)` is not as large as its image `(3, height, width)`."""
    if image.shape[-2:] != target.shape[-2:]:
        sizes = [" x ".join(map(str, tensor.shape[-2:])) for tensor in (target, image)]
        raise ValueError(f"The {name} of {where} has {sizes[0]} pixels but its image {sizes[1]} (height x width).")


class TableExamples(Dataset[ModelInputs]):
    """Rows as model inputs. Item `index` depends on (seed, epoch, index) alone, so that a resumed run repeats it.

    Args:
        rows: The table, columns `image` and `target`.
        task: The task.
        transform: Transform of samples that draws from torch's global generator.
        seed: Seed of the augmentation.
        name: Name of an image for messages, such as "training image".
        weights: Mean number of times of each row in an epoch, `(num_rows,)`; `None` for once.
    """

    def __init__(
        self, rows: Any, task: FinetuningTask, transform: nn.Module, seed: int, name: str, weights: Tensor | None = None
    ):
        self.rows, self.task, self.transform, self.seed, self.name = encoded(rows), task, transform, seed, name
        self.weights = weights
        self.epoch = 0
        self._drawn: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.weights is None else epoch_length(self.weights)

    def row_of(self, index: int) -> int:
        """Return the row of an index in this epoch."""
        if self.weights is None:
            return index
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "sampler", self.epoch))
            self._drawn = self.epoch, draw_images(self.weights, generator).tolist()
        return self._drawn[1][index]

    def __getitem__(self, index: int) -> ModelInputs:
        row = self.row_of(index)
        values = read_row(self.rows, row, self.name)
        return build_example(self.task, self.transform, values, f"{self.name} {row}", (self.seed, self.epoch, index))


class StreamedExamples(IterableDataset[ModelInputs]):
    """The rows of a stream as model inputs, without end.

    Args:
        stream: The rows.
        task: The task.
        transform: Transform of samples that draws from torch's global generator.
        seed: Seed of the augmentation.
        name: Name of an image for messages, such as "training image".
    """

    def __init__(self, stream: LabeledStream, task: FinetuningTask, transform: nn.Module, seed: int, name: str):
        self.stream, self.task, self.transform, self.seed, self.name = stream, task, transform, seed, name

    def __iter__(self) -> Iterator[ModelInputs]:
        worker = get_worker_info()
        reader = (self.seed, self.stream.rank, 0 if worker is None else worker.id)
        for index, row in enumerate(self.stream.rows()):
            yield build_example(self.task, self.transform, row, f"{self.name} {index}", (*reader, index))


def build_example(
    task: FinetuningTask, transform: nn.Module, row: Mapping[str, Any], where: str, draw: Sequence[int]
) -> ModelInputs:
    """Return a row as model inputs.

    Args:
        task: The task.
        transform: Transform of the sample that draws from torch's global generator.
        row: `image` and `target`.
        where: Name of the image in errors.
        draw: Numbers that seed the augmentation.
    """
    sample = task.read(row, where)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(draw[0], "augmentation", *draw[1:]))
        sample = transform(sample)
    return {"pixel_values": sample["image"].as_subclass(Tensor), "labels": task.labels(sample)}


def training_images(task: FinetuningTask, most: int | None = None) -> TableExamples:
    """Return the training images as they are, each once, without augmentation.

    Args:
        task: The task.
        most: Number of images; of more, evenly spaced ones are taken.
    """
    rows, count = task.images.train, len(task.images.train)
    if most is not None and most < count:
        rows = rows.select([index * count // most for index in range(most)])
    transform = build_transform(task.settings, task.targets, task.size, is_training=False)
    return TableExamples(rows, task, transform, task.settings.seed, "training image")


def build_examples(task: FinetuningTask, *, is_training: bool) -> TableExamples | StreamedExamples:
    """Return the training or validation images of a task as model inputs."""
    settings, images = task.settings, task.images
    rows, name = (images.train, "training image") if is_training else (images.validation, images.measured)
    transform = build_transform(settings, task.targets, task.size, is_training=is_training)
    if is_training and images.stream is not None:
        return StreamedExamples(images.stream, task, transform, settings.seed, name)
    weights = sampling_weights(task) if is_training else None
    return TableExamples(rows, task, transform, settings.seed, name, weights)


def sampling_weights(task: FinetuningTask) -> Tensor | None:
    """Return the mean number of times of each training image in an epoch, `(num_images,)`; `None` for once."""
    settings = task.settings
    if settings.sampler is None:
        return None
    classes = task.classes_of(task.images.train, "training image")
    if classes is None:
        raise ValueError(f"`sampler` {settings.sampler!r} is for classes, but the labels are numbers: leave it out.")
    return image_weights(settings.sampler, classes, len(task.class_names))
