"""Weighted kNN accuracy of frozen features, as a metric of the package `evaluate`."""

import datasets
import evaluate
import torch

from .knn import TEMPERATURE, knn_accuracy


class KnnAccuracy(evaluate.Metric):
    """`compute(predictions=features, references=labels, gallery=..., gallery_labels=..., k=20)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of images whose weighted vote of nearest neighbors is right. Nothing is trained.",
            citation="Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021.",
            inputs_description=(
                "predictions: features of the queries, one row each; references: their class indices. To compute: "
                "gallery (features) and gallery_labels, or none, and each query is compared with the others; k "
                "(neighbors that vote) and temperature (of the votes' weights)."
            ),
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2104.14294", "https://arxiv.org/abs/2312.06709"],
        )

    def _compute(self, predictions, references, gallery=None, gallery_labels=None, k=20, temperature=TEMPERATURE):  # pyrefly: ignore[bad-override]
        queries, labels = torch.tensor(predictions), torch.tensor(references)
        is_alone = gallery is None
        stored = queries if is_alone else torch.as_tensor(gallery, dtype=torch.float32)
        stored_labels = labels if is_alone else torch.as_tensor(gallery_labels)
        options = {"k": k, "temperature": temperature, "leave_one_out": is_alone}
        return {"knn_accuracy": knn_accuracy(queries, labels, stored, stored_labels, **options)}
