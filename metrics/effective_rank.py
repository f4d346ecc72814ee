"""Effective rank of features (the number of directions that they use), as a measurement of the package `evaluate`."""

import datasets
import evaluate
import torch

from .representation import effective_rank


class EffectiveRank(evaluate.Measurement):
    """`compute(data=features)`: no labels are needed."""

    def _info(self) -> evaluate.MeasurementInfo:
        return evaluate.MeasurementInfo(
            description="Effective rank of features: the exponential of the entropy of their singular values.",
            citation="Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.",
            inputs_description="data: features, one row each, at least two different ones.",
            features=datasets.Features({"data": datasets.Sequence(datasets.Value("float32"))}),
            reference_urls=["https://arxiv.org/abs/2210.02885"],
        )

    def _compute(self, data):  # pyrefly: ignore[bad-override]
        return {"effective_rank": effective_rank(torch.tensor(data))}
