"""What runs of a study recorded on held-out images while they trained, and the figure of it."""

from __future__ import annotations

from pathlib import Path

from training.ablation.raw_results import StudyResults
from training.ablation.report import CURVES
from training.ablation.study import OpenedStudy
from training.distillation.watching.run_history import read_series
from training.pictures.curves import Curve, draw_runs


FIDELITIES = {"dense_fidelity_centered": "dense features", "summary_fidelity_centered": "summary"}
"""Measurements of `HeldOutMetrics` that are kept, with words for the figure: cosines with a teacher, about the mean."""


def read_curves(history: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return the fidelities that a run recorded, by measurement and teacher, at the largest size it was measured at.

    Args:
        history: The run's `history.jsonl`.
    """
    sizes: dict[str, int] = {}
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for name, curve in read_series(history).items():
        measurement, _, rest = name.partition("/")
        teacher, _, size = rest.rpartition("/")
        if measurement not in FIDELITIES:
            continue
        own, size_px = f"{measurement}/{teacher}", int(size.removesuffix("px"))
        if size_px > sizes.get(own, 0):
            sizes[own], curves[own] = size_px, curve
    return curves


def draw_study_curves(opened: OpenedStudy, results: StudyResults) -> None:
    """Draw the curves of all runs into the study's folder, a panel for each teacher; nothing where none has any."""
    panels: dict[str, dict[str, list[Curve]]] = {}
    for (arm, _), run in results.runs.items():
        for name, curve in run.curves.items():
            measurement, _, teacher = name.partition("/")
            title = f"{teacher}, {FIDELITIES[measurement]}"
            panels.setdefault(title, {}).setdefault(arm, []).append(curve)
    if panels:
        draw_runs(panels, opened.folder / CURVES, "cosine with the teacher, about its mean")
