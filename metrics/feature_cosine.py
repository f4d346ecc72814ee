"""Mean cosines of features with those of another model, as a metric of the package `evaluate`."""

import datasets
import evaluate
import torch

from .representation import centered_cosine, mean_cosine


class FeatureCosine(evaluate.Metric):
    """`compute(predictions=features, references=features)`: fidelity to a teacher, consistency over sizes."""

    def _info(self) -> evaluate.MetricInfo:
        vectors = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Mean cosine of features with those of a reference, plain and about the reference's mean.",
            citation="Ranzinger et al., AM-RADIO: agglomerative vision foundation model, CVPR 2024.",
            inputs_description="predictions, references: features, one row each, rows that belong together.",
            features=datasets.Features({"predictions": vectors, "references": vectors}),
            reference_urls=["https://arxiv.org/abs/2312.06709"],
        )

    def _compute(self, predictions, references):  # pyrefly: ignore[bad-override]
        features, reference = torch.tensor(predictions), torch.tensor(references)
        return {"cosine": mean_cosine(features, reference), "centered_cosine": centered_cosine(features, reference)}
