"""The figure of a study of RADIO1D: what is measured over the number of global tokens."""

from __future__ import annotations

from training.ablation.measures import of_tokens, read_token_measure
from training.ablation.raw_results import StudyResults
from training.ablation.study import OpenedStudy
from training.pictures.curves import ValuesByCount, draw_over_counts
from training.pictures.token_curves import AXIS


TOKEN_CURVES = "tokens.png"


def draw_study_tokens(opened: OpenedStudy, results: StudyResults) -> None:
    """Draw a panel for each measure with a curve for each arm; nothing where no student has global tokens."""
    panels: dict[str, dict[str, ValuesByCount]] = {}
    for arm, seed in results.runs:
        for name in of_tokens(results.measures()):
            measure, count = read_token_measure(name) or ("", 0)
            by_count = panels.setdefault(measure, {}).setdefault(arm, {})
            by_count.setdefault(count, []).append(results.value(arm, seed, name))
    if panels:
        draw_over_counts(panels, opened.folder / TOKEN_CURVES, AXIS)
