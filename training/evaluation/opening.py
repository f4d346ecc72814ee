"""Opens what `data` names: the demo's set, or anybody's images."""

from __future__ import annotations

from training.data.sources import DEMO_SOURCES
from training.evaluation.data import EvaluationData
from training.evaluation.data_tables import DataOptions, TableData
from training.evaluation.demo_data import DemoData


def open_data(source: str, options: DataOptions, *, size_px: int, seed: int = 0) -> EvaluationData:
    """Return a data set to measure on.

    Args:
        source: "demo" or "demo-pypi", whose images are made of packages; or see `TableData`.
        options: Columns, splits and units; of no use to the demo.
        size_px: At which the demo's images are rendered.
        seed: Of the choice of images where not all are measured.

    Raises:
        ValueError: If it cannot be opened.
        PackageError: If packages cannot be fetched.
    """
    if source in DEMO_SOURCES:
        return DemoData.load(source, size_px)
    return TableData(source, options, seed=seed)
