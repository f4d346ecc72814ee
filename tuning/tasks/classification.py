"""Labels of whole images: one class, several, a measured number, or a class of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from modeling_radio import (
    RadioConfig,
    RadioForImageClassification,
    RadioForZeroShotImageClassification,
    RadioPreTrainedModel,
)
from modeling_radio.checks_radio import Resolution
from modeling_radio.data.labeled.images import LABELS, LabeledImages
from modeling_radio.figures.style import INK
from modeling_radio.heads_radio import ProblemType
from modeling_radio.metrics.tallies import THRESHOLD, ClassTally
from modeling_radio.tokenizer import open_tokenizer
from modeling_radio.tuning.data import Sample, choose_weights
from modeling_radio.tuning.settings import BALANCED, FinetuneSettings
from modeling_radio.tuning.tasks.base import (
    Evidence,
    FinetuningTask,
    LinearLoss,
    ModelInputs,
    Score,
    count_confusion,
    cross_entropy_of_shares,
    rank_classes,
    squared_error,
)


NUM_BARS = 3  # our choice: figures show at least this number of the most probable classes
MAX_RANKED = 20  # our choice of the most probable classes of an image; all of a thousand would fill the memory
IN_WORDS: dict[ProblemType, str] = {
    "single_label_classification": "one class an image",
    "multi_label_classification": "lists of classes",
    "regression": "measured numbers",
}


class ClassificationTask(FinetuningTask):
    """Single-label classification. Predictions are logits, `(batch, num_classes)`; references are ids, `(batch,)`."""

    model_class = RadioForImageClassification
    targets = LABELS
    best_metric = "accuracy"
    error_name = "loss"
    takes_class_weights = True
    convolutional_learning_rate = 1e-3  # of one network, see docs/explanation/tuning_study.md
    problem_type: ClassVar[ProblemType] = "single_label_classification"

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        super().__init__(settings, images)
        if images.problem_type is not None and images.problem_type != self.problem_type:
            raise ValueError(
                f"The labels of {settings.data!r} must be {IN_WORDS[self.problem_type]} for {settings.task}, got "
                f"{IN_WORDS[images.problem_type]}."
            )

    @classmethod
    def for_labels(cls, problem_type: ProblemType | None) -> type[FinetuningTask]:
        classes = {"multi_label_classification": MultiLabelTask, "regression": RegressionTask}
        return classes.get(str(problem_type), cls) if cls is ClassificationTask else cls

    @classmethod
    def has_linear_head(cls, config: RadioConfig) -> bool:
        return True

    def config_fields(self) -> dict[str, Any]:
        fields = {**super().config_fields(), "problem_type": self.problem_type}
        if self.settings.class_weights is not None:
            fields["class_weights"] = choose_weights(
                self.settings.class_weights,
                self.class_names,
                lambda: torch.tensor(self.images.train["target"][:]).bincount(minlength=len(self.class_names)),
            )
        return fields

    def classes_of(self, rows: Any, name: str) -> list[list[int]] | None:
        return [[label] for label in rows["target"][:]]

    def linear_loss(self, class_weights: Sequence[float] | None) -> LinearLoss | None:
        return partial(cross_entropy_of_shares, class_weights=class_weights)

    def linear_targets(self, labels: Tensor, grid: Resolution | None) -> Tensor:
        return F.one_hot(labels, len(self.class_names))

    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        return {"image": self.read_image(row["image"], where), "label": row["target"]}

    def labels(self, sample: Sample) -> Tensor:
        return torch.tensor(sample["label"])

    def compare(self, outputs: Any, batch: ModelInputs) -> tuple[Tensor, Tensor]:
        return outputs.logits.float(), batch["labels"]

    def build_score(self) -> Score:
        return ClassScore(len(self.class_names))

    def evidence(self, predictions: Tensor, references: Tensor) -> Evidence:
        shares, num_classes = predictions.softmax(dim=1), len(self.class_names)
        return Evidence(
            F.cross_entropy(predictions, references, reduction="none"),
            rank_classes(shares, F.one_hot(references, num_classes), MAX_RANKED),
            count_confusion(predictions.argmax(dim=1), references, num_classes),
        )

    def is_right(self, prediction: Tensor, reference: Tensor) -> bool | None:
        return bool(prediction.argmax() == reference)

    def draw_truth(self, ax: Axes, image: Tensor, reference: Tensor) -> None:
        ax.imshow(image.numpy())
        ax.set_title(self._describe(reference), fontsize=7)

    def _describe(self, reference: Tensor) -> str:
        return self.class_names[int(reference)]

    def draw_prediction(self, ax: Axes, image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        shares = prediction.softmax(dim=0)
        self._draw_bars(ax, shares, NUM_BARS, torch.arange(len(shares)) == reference)

    def _draw_bars(self, ax: Axes, shares: Tensor, count: int, is_right: Tensor) -> None:
        """Draw the probabilities of the most probable classes, green where the class `is_right`."""
        best = shares.topk(min(count, len(shares)))
        names = [self.class_names[number] for number in best.indices.tolist()]
        colors = ["tab:green" if right else "tab:red" for right in is_right[best.indices].tolist()]
        ax.barh(names[::-1], best.values.tolist()[::-1], color=colors[::-1])
        ax.set_xlim(0, 1)
        ax.tick_params(labelsize=6)


class ClassScore:
    """Accuracy, balanced accuracy and F1, as `radio evaluate` has them.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int):
        self.tally = ClassTally(num_classes)

    def update(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch: logits, `(batch, num_classes)`, and ids."""
        self.tally.add(predictions.cpu(), references.cpu())

    def compute(self) -> dict[str, Tensor]:
        """Return the three scores."""
        scores = self.tally.once()
        return {name: torch.tensor(scores[name]) for name in ("accuracy", "balanced_accuracy", "f1")}

    def reset(self) -> None:
        """Forget all batches."""
        self.tally = ClassTally(self.tally.num_classes)


def binary_cross_entropies(logits: Tensor, targets: Tensor, class_weights: Sequence[float] | None) -> Tensor:
    """Return the sum over the classes of the binary cross-entropies of each row, `(rows,)`."""
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    return F.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="none").sum(1)


class MultiLabelTask(ClassificationTask):
    """Any number of classes an image, also none.

    Predictions are probabilities, references 1 where an image has a class, else 0; both `(batch, num_classes)`.
    """

    best_metric = "mean_average_precision"
    has_thresholds = True
    problem_type = "multi_label_classification"

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        super().__init__(settings, images)
        if not any(images.validation["target"]):
            raise ValueError(
                f"No {images.measured} of {settings.data!r} has a class, so that nothing can be measured: label some "
                "of them, or hold out more images with `validation_share`."
            )

    def config_fields(self) -> dict[str, Any]:
        if self.settings.class_weights == BALANCED:
            raise ValueError(
                f"`class_weights` {BALANCED!r} is for one class an image; for several give one number for each of the "
                f"{len(self.class_names)} classes, or leave it out."
            )
        return super().config_fields()

    def classes_of(self, rows: Any, name: str) -> list[list[int]] | None:
        return rows["target"][:]

    def linear_loss(self, class_weights: Sequence[float] | None) -> LinearLoss | None:
        return partial(binary_cross_entropies, class_weights=class_weights)

    def linear_targets(self, labels: Tensor, grid: Resolution | None) -> Tensor:
        return labels

    def labels(self, sample: Sample) -> Tensor:
        labels = torch.zeros(len(self.class_names))
        labels[sample["label"]] = 1
        return labels

    def compare(self, outputs: Any, batch: ModelInputs) -> tuple[Tensor, Tensor]:
        return outputs.logits.float().sigmoid(), batch["labels"].long()

    def build_score(self) -> Score:
        return MultiLabelScore(len(self.class_names))

    def evidence(self, predictions: Tensor, references: Tensor) -> Evidence:
        errors = F.binary_cross_entropy(predictions, references.float(), reduction="none").mean(dim=1)
        return Evidence(errors, rank_classes(predictions, references))

    def is_right(self, prediction: Tensor, reference: Tensor) -> bool | None:
        return torch.equal(prediction > THRESHOLD, reference.bool())

    def _describe(self, reference: Tensor) -> str:
        names = [self.class_names[number] for number in reference.nonzero().flatten().tolist()]
        return ", ".join(names) or "no class"

    def draw_prediction(self, ax: Axes, image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        is_predicted = prediction > THRESHOLD
        self._draw_bars(ax, prediction, max(NUM_BARS, int(is_predicted.sum())), is_predicted == reference.bool())
        ax.axvline(THRESHOLD, color=INK, linewidth=0.5)


class RegressionTask(ClassificationTask):
    """A measured number an image, `(batch,)`: in transformers the classifier with one output and a squared error."""

    best_metric = "mean_absolute_error"
    greater_is_better = False
    error_name = "absolute error"
    problem_type = "regression"

    def __init__(self, settings: FinetuneSettings, images: LabeledImages):
        super().__init__(settings, images)
        self.class_names = ("value",)

    def config_fields(self) -> dict[str, Any]:
        if self.settings.class_weights is not None:
            raise ValueError("`class_weights` is for classes, but the labels are measured numbers: leave it out.")
        return super().config_fields()

    def classes_of(self, rows: Any, name: str) -> None:
        return None

    def linear_loss(self, class_weights: Sequence[float] | None) -> LinearLoss | None:
        return squared_error

    def linear_targets(self, labels: Tensor, grid: Resolution | None) -> Tensor:
        return labels[:, None]

    def compare(self, outputs: Any, batch: ModelInputs) -> tuple[Tensor, Tensor]:
        return outputs.logits.float().squeeze(1), batch["labels"]

    def build_score(self) -> Score:
        from torchmetrics import MeanAbsoluteError, MetricCollection

        return MetricCollection({"mean_absolute_error": MeanAbsoluteError(sync_on_compute=False)})

    def evidence(self, predictions: Tensor, references: Tensor) -> Evidence:
        return Evidence((predictions - references).abs())

    def is_right(self, prediction: Tensor, reference: Tensor) -> bool | None:
        return None

    def _describe(self, reference: Tensor) -> str:
        return f"{float(reference):.4g}"

    def draw_prediction(self, ax: Axes, image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        ax.barh(("prediction", "truth"), (float(prediction), float(reference)), color=("tab:blue", "tab:gray"))
        ax.tick_params(labelsize=6)


class MultiLabelScore:
    """Mean average precision and F1 over the classes that occur; the means of torchmetrics count the others as 0.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int):
        from torchmetrics import AveragePrecision, F1Score, MetricCollection

        task = "multilabel" if num_classes > 1 else "binary"  # the former refuses a single label
        options: dict[str, Any] = {"task": task, "num_labels": num_classes, "average": None, "sync_on_compute": False}
        self.metrics = MetricCollection(
            {
                "mean_average_precision": AveragePrecision(**options),
                "f1": F1Score(threshold=THRESHOLD, **options),
            }
        )
        self.occurs = torch.zeros(num_classes, dtype=torch.bool)

    def update(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch: probabilities, and 1 where an image has a class, else 0, both `(batch, num_classes)`."""
        self.metrics.update(predictions, references)
        self.occurs |= references.bool().any(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """Return the means over classes, NaN where no image has a class."""
        return {name: values.reshape(-1)[self.occurs].mean() for name, values in self.metrics.compute().items()}

    def reset(self) -> None:
        """Reset the metric."""
        self.metrics.reset()
        self.occurs.zero_()


def cross_entropy_of_texts(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Return the mean cross-entropy over the classes' texts, or the sum divided by `num_items_in_batch`."""
    logits = outputs.logits_per_image.float()
    if num_items_in_batch is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


class ZeroShotTask(ClassificationTask):
    """One class an image, described by a text; the tuned model still accepts any other texts.

    The texts are those of `embed_classes`, encoded once: the text tower is frozen. The head is the last layer of the
    adaptor's summary head, a projection into the space of the texts. CLIP-Adapter (https://arxiv.org/abs/2110.04544)
    adds layers behind it; here the projection itself is trained.

    Raises:
        ValueError: If images have several labels, or numbers.
    """

    model_class = RadioForZeroShotImageClassification
    takes_class_weights = False
    convolutional_learning_rate = None
    loss_function = staticmethod(cross_entropy_of_texts)
    head_learning_rate = 1e-4  # our choice: the projection is trained already

    text_embeds: Tensor
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def has_linear_head(cls, config: RadioConfig) -> bool:
        return False  # a projection of the adaptor

    def linear_loss(self, class_weights: Sequence[float] | None) -> LinearLoss | None:
        return None

    def config_fields(self) -> dict[str, Any]:
        return {}

    def check_config(self, config: RadioConfig, grid: Resolution) -> None:
        if config.text_tower is None:
            raise ValueError(
                f"`checkpoint` {self.settings.checkpoint!r} has no text tower: make a folder with one by `radio "
                "convert ... --text-tower ID`, of the demo's student by `radio add-words`."
            )

    def prepare(self, model: RadioPreTrainedModel) -> None:
        """Encode the classes' texts with the checkpoint's tokenizer.

        Raises:
            ValueError: If the checkpoint has none.
        """
        self.tokenizer = open_tokenizer(self.settings.checkpoint)
        zero_shot = cast(RadioForZeroShotImageClassification, model)
        self.text_embeds = zero_shot.embed_classes(self.tokenizer, self.class_names).float().cpu()

    def extras(self) -> list[PreTrainedTokenizerBase]:
        return [self.tokenizer]

    def collate(self, examples: Sequence[ModelInputs]) -> ModelInputs:
        return {**super().collate(examples), "text_embeds": self.text_embeds}

    def compare(self, outputs: Any, batch: ModelInputs) -> tuple[Tensor, Tensor]:
        return outputs.logits_per_image.float(), batch["labels"]
