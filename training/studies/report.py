"""What a study says: its question, one table of means and paired differences, and one figure."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from core.files import write_file
from core.tables import markdown
from training.figures.features import DPI
from training.studies.raw_results import StudyResults
from training.studies.study import (
    CONSISTENCY,
    DENSE,
    FIXED_PATTERN,
    SUMMARY,
    WORST,
    Comparison,
    Difference,
    OpenedStudy,
    better_direction,
    holm,
    paired_difference,
)


SHOWN = (f"{DENSE}/{WORST}", f"{SUMMARY}/{WORST}", FIXED_PATTERN, CONSISTENCY)
"""Our choice of what stands beside the primary measure in the figure."""
LEAST_P = 0.001
"""Smaller p-values are shown as "below": with three to five seeds they rest on the normal distribution of so few
differences. Our choice."""


class Compared(NamedTuple):
    """An arm beside the one that it is compared with.

    Attributes:
        pair: Which.
        difference: None with fewer than two seeds.
        adjusted: Its p-value after Holm's correction for all of the study's comparisons, of the primary measure; else
            None.
    """

    pair: Comparison
    difference: Difference | None
    adjusted: float | None


def comparisons(opened: OpenedStudy, results: StudyResults) -> list[Comparison]:
    """Return what is compared: the study's arms, then those that are gone, each beside the first arm."""
    first = opened.study.arms[0].name
    return [*opened.comparisons(), *(Comparison(arm, first) for arm in results.gone)]


def compare(opened: OpenedStudy, results: StudyResults, measure: str, seeds: Sequence[int]) -> list[Compared]:
    """Return the differences of a measure, over those seeds that both arms were run with."""
    found = [(pair, _difference(results, pair, measure, seeds)) for pair in comparisons(opened, results)]
    adjusted: list[float | None] = [None] * len(found)
    if measure == opened.study.primary:  # what has no p-value yet counts as well: the last run must not lift the others
        adjusted = [*holm([1.0 if difference is None else difference.p_value for _, difference in found])]
    return [Compared(*each, p_value) for each, p_value in zip(found, adjusted, strict=True)]


def _differences(results: StudyResults, pair: Comparison, measure: str, seeds: Sequence[int]) -> dict[int, float]:
    """Return the difference of each seed that both arms were run with."""
    shared = [seed for seed in results.seeds(*pair) if seed in seeds]
    return {
        seed: results.value(pair.arm, seed, measure) - results.value(pair.against, seed, measure) for seed in shared
    }


def _difference(results: StudyResults, pair: Comparison, measure: str, seeds: Sequence[int]) -> Difference | None:
    values = _differences(results, pair, measure, seeds)
    draws = []
    for seed in values:
        own, other = (results.resampled(arm, seed, measure) for arm in pair)
        draws += [] if own is None or other is None else [own - other]
    if not draws:
        return paired_difference([*values.values()], None, 1)
    return paired_difference([*values.values()], torch.stack(draws), results.num_effective_sources(measure))


def build_report(opened: OpenedStudy, results: StudyResults | None) -> str:
    """Return what a study asked, what it was measured on, and its tables, in Markdown."""
    study = opened.study
    if results is None:
        return f"{study.question.strip()}\n\nNot run yet. Primary measure: `{study.primary}`."
    held_out = results.held_out
    steps = sorted({recipe.schedule.num_steps for recipe in opened.recipes.values()})
    planned = [(arm, seed) for arm in opened.recipes for seed in study.seeds]
    done = sum(run in results.results for run in planned)
    facts = (
        f"Recipe `{' '.join([study.recipe, *study.changes])}`, {' / '.join(map(str, steps))} steps. "
        f"Measured on {held_out.num_images:,} images of {held_out.num_sources} source pictures (as much evidence as "
        f"{results.num_effective_sources(CONSISTENCY):.0f} of equal share) at {held_out.size_px} px "
        f"({CONSISTENCY}: {', '.join(map(str, held_out.sizes_px))} px). "
        f"Primary measure: `{study.primary}`, {better_direction(study.primary)}."
    )
    if done < len(planned):
        facts += f" **Not finished: {done} of {len(planned)} runs.**"
    parts = [study.question.strip(), facts, build_table(opened, results, study.seeds)]
    others = sorted({seed for _, seed in results.results} - set(study.seeds))
    if others:
        parts += [f"Once more, with seeds {', '.join(map(str, others))}:", build_table(opened, results, others)]
    if results.failures:
        lines = [f"- {arm}, seed {seed}: {failure}" for (arm, seed), failure in results.failures.items()]
        parts.append("\n".join(["Runs without scores, which means and differences leave out:", "", *lines]))
    return "\n\n".join(parts)


def build_table(opened: OpenedStudy, results: StudyResults, seeds: Sequence[int]) -> str:
    """Return a Markdown table with a row for each measure, the primary one first, and a column for each arm."""
    arms = [*(arm.name for arm in opened.study.arms), *results.gone]
    against = {pair.arm: f" (against {pair.against})" for pair in comparisons(opened, results)}
    against |= {arm: against[arm].replace("(", "(gone, ", 1) for arm in results.gone}
    counts = {arm: [seed for seed in results.seeds(arm) if seed in seeds] for arm in arms}
    rows = [["seeds", *(_seeds(counts[arm], results, arm, seeds) for arm in arms)]]
    primary = opened.study.primary
    for measure in dict.fromkeys([primary, *results.measures()]):
        compared = {each.pair.arm: each for each in compare(opened, results, measure, seeds)}
        cells = []
        for arm in arms:
            values = [results.value(arm, seed, measure) for seed in counts[arm]]
            cells.append("<br>".join(filter(None, [_mean(values), _shown(compared.get(arm))])))
        rows.append([f"**{measure}** (primary)" if measure == primary else measure, *cells])
    return markdown(["", *(f"{arm}{against.get(arm, '')}" for arm in arms)], rows)


def _seeds(scored: Sequence[int], results: StudyResults, arm: str, seeds: Sequence[int]) -> str:
    failed = [f"{seed} failed" for seed in seeds if (arm, seed) in results.failures]
    return ", ".join([*map(str, scored), *failed]) or "none"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    error = f" +- {stdev(values) / sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{error}"


def _shown(compared: Compared | None) -> str:
    if compared is None or compared.difference is None:
        return ""
    found, adjusted = compared.difference, compared.adjusted
    text = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    text = f"**{text}**" if found.excludes_zero else text
    if adjusted is None:
        return text
    return f"{text}, p < .001" if adjusted < LEAST_P else f"{text}, p = {adjusted:.2g}"


def draw_figure(opened: OpenedStudy, results: StudyResults, path: Path) -> None:
    """Draw the paired differences of the primary measure and those that describe most; nothing without any pair.

    Args:
        opened: The study.
        results: Its raw results.
        path: The picture to write; a reader never sees half of it.
    """
    seeds, known = opened.study.seeds, results.measures()
    pairs = [pair for pair in comparisons(opened, results) if set(results.seeds(*pair)) & set(seeds)]
    if not pairs:
        return
    measures = list(dict.fromkeys([opened.study.primary, *(name for name in SHOWN if name in known)]))
    size = (2.0 + 2.9 * len(measures), 1.1 + 0.42 * len(pairs))
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False, sharey=True)[0], measures, strict=True):
        compared = [each for each in compare(opened, results, measure, seeds) if each.pair in pairs]
        dots = [[*_differences(results, each.pair, measure, seeds).values()] for each in compared]
        _draw_panel(axes, compared, dots)
        axes.set_title(f"{measure} ({better_direction(measure)})", fontsize=8)
    write_file(path, figure.savefig)


def _draw_panel(axes: Axes, compared: Sequence[Compared], dots: Sequence[Sequence[float]]) -> None:
    """Draw intervals around mean differences, each seed as a dot, zero as a line."""
    axes.axvline(0, color="0.6", linewidth=0.8)
    for row, ((_, difference, _), own) in enumerate(zip(compared, dots, strict=True)):
        axes.scatter(own, [row + 0.22] * len(own), s=7, color="0.55")
        if difference is not None:
            margins = [[difference.mean - difference.low], [difference.high - difference.mean]]
            axes.errorbar([difference.mean], [row], xerr=margins, fmt="o", markersize=4, capsize=3, color="C0")
    axes.set_yticks(range(len(compared)), [f"{arm} - {against}" for (arm, against), _, _ in compared])
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(labelsize=7)
    axes.grid(axis="x", alpha=0.25)
