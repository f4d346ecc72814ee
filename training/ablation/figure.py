"""The figure of a study: the primary measure's differences, and beside them those that describe most."""

from __future__ import annotations

from training.ablation.measures import CONSISTENCY, DENSE, FIXED_PATTERN, SUMMARY, WORST, better_direction
from training.ablation.raw_results import StudyResults
from training.ablation.report import FIGURE, compare
from training.ablation.study import OpenedStudy
from training.pictures.differences import Line, draw_differences


SHOWN = (f"{DENSE}/{WORST}", f"{SUMMARY}/{WORST}", FIXED_PATTERN, CONSISTENCY)
"""Our choice of what stands beside the primary measure."""


def draw_study(opened: OpenedStudy, results: StudyResults) -> None:
    """Draw the paired differences of a study into its folder; nothing where no two arms share a seed."""
    seeds, known = opened.study.seeds, results.measures()
    pairs = [pair for pair in opened.comparisons() if set(results.seeds(*pair)) & set(seeds)]
    if not pairs:
        return
    panels = {}
    for measure in dict.fromkeys([opened.study.primary, *(name for name in SHOWN if name in known)]):
        lines = []
        for found in compare(opened, results, measure, seeds):
            pair, difference = found.pair, found.difference
            if pair not in pairs:
                continue
            shared = [seed for seed in results.seeds(*pair) if seed in seeds]
            dots = [
                results.value(pair.arm, seed, measure) - results.value(pair.against, seed, measure) for seed in shared
            ]
            interval = None if difference is None else (difference.mean, difference.low, difference.high)
            lines.append(Line(f"{pair.arm} - {pair.against}", dots, interval))
        panels[f"{measure} ({better_direction(measure)})"] = lines
    draw_differences(panels, opened.folder / FIGURE)
