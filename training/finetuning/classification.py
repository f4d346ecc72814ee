"""Image classification for the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from modeling_radio import RadioForImageClassification
from training.finetuning.augmentation import Sample
from training.finetuning.class_weights import choose_weights
from training.finetuning.task import Batch, FinetuningTask, Score


class ClassificationTask(FinetuningTask):
    """One label an image."""

    model_class = RadioForImageClassification
    best_metric = "accuracy"

    def config_fields(self) -> dict[str, Any]:
        fields = {**super().config_fields(), "problem_type": "single_label_classification"}
        if self.settings.class_weights is not None:
            fields["class_weights"] = choose_weights(self.settings.class_weights, self.class_names, self._count_classes)
        return fields

    def _count_classes(self) -> Tensor:
        return torch.tensor(self.images.train["target"][:]).bincount(minlength=len(self.class_names))

    def read(self, row: Mapping[str, Any], where: str) -> Sample:
        return {"image": self.read_image(row["image"], where), "label": row["target"]}

    def labels(self, sample: Sample) -> Tensor:
        return torch.tensor(sample["label"])

    def compare(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        return outputs.logits.float(), batch["labels"]

    def build_score(self) -> Score:
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        options = {"num_classes": len(self.class_names), "sync_on_compute": False}
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(average="micro", **options),
                "balanced_accuracy": MulticlassAccuracy(average="macro", **options),
                "f1": MulticlassF1Score(average="macro", **options),
            }
        )

    def draw(self, axes: Sequence[Axes], image: Tensor, prediction: Tensor, reference: Tensor) -> None:
        truth, predicted = int(reference), int(prediction.argmax())
        axes[0].imshow(image.numpy())
        axes[0].set_title(self.class_names[truth], fontsize=7)
        shares = prediction.softmax(dim=0)
        best = shares.topk(min(3, len(shares)))
        names = [self.class_names[number] for number in best.indices.tolist()]
        axes[1].barh(names[::-1], best.values.tolist()[::-1], color="tab:green" if truth == predicted else "tab:red")
        axes[1].set_xlim(0, 1)
        axes[1].tick_params(labelsize=6)
