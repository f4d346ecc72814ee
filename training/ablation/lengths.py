"""The figure of arms that a study runs at several lengths: what is measured over the number of steps."""

from __future__ import annotations

from training.ablation.measures import DENSE, FIXED_PATTERN, KNN, MIOU, SHIFT_ERROR, WORST, better_direction
from training.ablation.raw_results import StudyResults
from training.ablation.study import OpenedStudy
from training.pictures.curves import ValuesByCount, draw_over_counts


LENGTHS = "lengths.png"


def draw_study_lengths(opened: OpenedStudy, results: StudyResults) -> None:
    """Draw a curve over steps for the arms `NAME_N` of N steps each; nothing where none has two lengths.

    Panels are the primary measure, dense errors of all teachers, and what describes most of the rest.
    """
    lengths: dict[str, dict[int, str]] = {}
    for arm, recipe in opened.recipes.items():
        name, _, steps = arm.rpartition("_")
        if steps == str(recipe.schedule.num_steps) and results.seeds(arm):
            lengths.setdefault(name, {})[recipe.schedule.num_steps] = arm
    series = {name: arms for name, arms in lengths.items() if len(arms) > 1}
    if not series:
        return
    dense = [name for name in results.measures() if name.startswith(f"{DENSE}/") and name != f"{DENSE}/{WORST}"]
    panels: dict[str, dict[str, ValuesByCount]] = {}
    for measure in dict.fromkeys([opened.study.primary, *dense, FIXED_PATTERN, SHIFT_ERROR, KNN, MIOU]):
        if measure in results.measures():
            panels[f"{measure} ({better_direction(measure)})"] = {
                name: {
                    steps: [results.value(arm, seed, measure) for seed in results.seeds(arm)]
                    for steps, arm in arms.items()
                }
                for name, arms in series.items()
            }
    draw_over_counts(panels, opened.folder / LENGTHS, "steps")
