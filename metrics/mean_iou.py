"""Mean intersection over union of class maps, as a metric of the package `evaluate`."""

import datasets
import evaluate
import torch

from .dense import IGNORE_INDEX, ConfusionMatrix


class MeanIou(evaluate.Metric):
    """`compute(predictions=maps, references=maps, num_classes=..., ignore_index=255)`; maps may differ in size."""

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int32")))
        return evaluate.MetricInfo(
            description="Mean intersection over union of classes, over all pixels of all images, and pixel accuracy.",
            citation="Everingham et al., The PASCAL visual object classes challenge, IJCV 2010.",
            inputs_description=(
                "predictions, references: maps of class indices, rows by columns, an image's two of one size. To "
                "compute: num_classes, and ignore_index, which true pixels that don't count have."
            ),
            features=datasets.Features({"predictions": maps, "references": maps}),
            reference_urls=["http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"],
        )

    def _compute(self, predictions, references, num_classes, ignore_index=IGNORE_INDEX):  # pyrefly: ignore[bad-override]
        confusion = ConfusionMatrix(num_classes, ignore_index)
        for predicted, true in zip(predictions, references, strict=True):
            confusion.update(torch.tensor(predicted), torch.tensor(true))
        return {name: value.item() for name, value in confusion.compute().items()}
