"""Accuracy of class indices, as a metric of the package `evaluate`."""

import datasets
import evaluate
import numpy as np


class Accuracy(evaluate.Metric):
    """`compute(predictions=indices, references=indices)`, the metric of evaluators of image classification."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of images whose class is right; balanced: the mean of that share over the true classes.",
            citation="Brodersen et al., The balanced accuracy and its posterior distribution, ICPR 2010.",
            inputs_description="predictions, references: class indices.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
            reference_urls=["https://doi.org/10.1109/ICPR.2010.764"],
        )

    def _compute(self, predictions, references):  # pyrefly: ignore[bad-override]
        predictions, references = np.asarray(predictions), np.asarray(references)
        is_right = predictions == references
        shares = [is_right[references == label].mean() for label in np.unique(references)]
        return {"accuracy": float(is_right.mean()), "balanced_accuracy": float(np.mean(shares))}
