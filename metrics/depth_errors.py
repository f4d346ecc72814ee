"""Errors of depth maps, as a metric of the package `evaluate`."""

import datasets
import evaluate
import torch

from .dense import DepthScore


class DepthErrors(evaluate.Metric):
    """`compute(predictions=maps, references=maps)`; maps may differ in size."""

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description="Relative and square error of depth, and the share of pixels within a factor of 1.25.",
            citation="Eigen et al., Depth map prediction using a multi-scale deep network, NIPS 2014.",
            inputs_description=(
                "predictions, references: maps of meters, rows by columns, an image's two of one size; 0 in references "
                "where the depth is not known."
            ),
            features=datasets.Features({"predictions": maps, "references": maps}),
            reference_urls=["https://arxiv.org/abs/1406.2283"],
        )

    def _compute(self, predictions, references):  # pyrefly: ignore[bad-override]
        score = DepthScore()
        for predicted, true in zip(predictions, references, strict=True):
            score.update(torch.tensor(predicted)[None], torch.tensor(true)[None])
        return {name: value.item() for name, value in score.compute().items()}
