"""Mean average precision, hits and recall of images that images find, as a metric of the package `evaluate`."""

import datasets
import evaluate
import torch

from .knn import retrieval_scores


class ImageRetrieval(evaluate.Metric):
    """`compute(predictions=features, references=labels, gallery=..., gallery_labels=..., ranks=(1, 5, 10))`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How well images find those of their class: mean average precision, hit rates and recalls.",
            citation="Musgrave et al., A metric learning reality check, ECCV 2020.",
            inputs_description=(
                "predictions: features of the queries, one row each; references: their class indices. To compute: "
                "gallery (features) and gallery_labels, or none, and each query is compared with the others; ranks."
            ),
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2003.08505"],
        )

    def _compute(self, predictions, references, gallery=None, gallery_labels=None, ranks=(1, 5, 10)):  # pyrefly: ignore[bad-override]
        queries, labels = torch.tensor(predictions), torch.tensor(references)
        is_alone = gallery is None
        stored = queries if is_alone else torch.as_tensor(gallery, dtype=torch.float32)
        stored_labels = labels if is_alone else torch.as_tensor(gallery_labels)
        scores = retrieval_scores(queries, labels, stored, stored_labels, ranks=ranks, leave_one_out=is_alone)
        return {name: values.nanmean().item() for name, values in scores.items()}
