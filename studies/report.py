"""Report of a study: paired differences with intervals, a table of means and differences, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from modeling_radio.core.files import write_file
from modeling_radio.core.tables import markdown
from modeling_radio.figures.features import DPI
from modeling_radio.figures.style import on_any_background
from modeling_radio.studies.raw_results import StudyResults
from modeling_radio.studies.study import (
    CONSISTENCY,
    DENSE,
    FIXED_PATTERN,
    SUMMARY,
    WORST,
    Comparison,
    OpenedStudy,
    better_direction,
)


LEVEL = 0.95
SHOWN = (f"{DENSE}/{WORST}", f"{SUMMARY}/{WORST}", FIXED_PATTERN, CONSISTENCY)
"""Measures beside the primary one in the figure; our choice."""
LEAST_P = 0.001
"""Smaller p-values are shown as "below": with three to five seeds they rest on the normal distribution of so few
differences. Our choice."""


class Difference(NamedTuple):
    """A mean difference over paired seeds.

    Attributes:
        mean: The difference.
        low: Lower end of its interval at `LEVEL`.
        high: Upper end.
        p_value: Two-sided, of no difference.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def excludes_zero(self) -> bool:
        """True if zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def paired_difference(differences: Sequence[float], resampled: Tensor | None, num_sources: float) -> Difference | None:
    """Return the mean of differences with its interval; None for fewer than two, or if nothing varies at all.

    Args:
        differences: One for each seed.
        resampled: The same on each draw of the sources, `(num_seeds, num_resamples)`; None where images are not drawn,
            so that the interval is of the seeds alone.
        num_sources: Pictures that are drawn, as `effective_sources` counts them.
    """
    from scipy.stats import t as student_t

    count = len(differences)
    if count < 2:
        return None
    values = torch.tensor(differences, dtype=torch.float64)
    of_seeds = values.var().item() / count
    of_sources = 0.0 if resampled is None else resampled.mean(0).var().item()
    mean, variance = values.mean().item(), of_seeds + of_sources
    if variance == 0:
        return None
    freedom = variance**2 / (of_seeds**2 / (count - 1) + of_sources**2 / max(num_sources - 1, 1))
    error = variance**0.5
    margin = float(student_t.ppf((1 + LEVEL) / 2, freedom)) * error
    p_value = 2 * float(student_t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - margin, mean + margin, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


class Compared(NamedTuple):
    """One measure of an arm beside that of another.

    Attributes:
        pair: The two arms.
        differences: Difference for each seed that both arms have.
        difference: Their mean; None with fewer than two seeds.
        adjusted: Its p-value after Holm's correction for all of the study's comparisons; None but for the primary
            measure.
    """

    pair: Comparison
    differences: list[float]
    difference: Difference | None
    adjusted: float | None = None


def compare(opened: OpenedStudy, results: StudyResults, measure: str, seeds: Sequence[int]) -> list[Compared]:
    """Return the differences of a measure between the arms that are compared, over some seeds."""
    found = [_compared(results, pair, measure, seeds) for pair in opened.comparisons(results.gone)]
    if measure != opened.study.primary:
        return found
    # Comparisons without a p-value count as well, so that the last run does not change the others' correction.
    adjusted = holm([1.0 if each.difference is None else each.difference.p_value for each in found])
    return [each._replace(adjusted=p_value) for each, p_value in zip(found, adjusted, strict=True)]


def _compared(results: StudyResults, pair: Comparison, measure: str, seeds: Sequence[int]) -> Compared:
    shared = [seed for seed in results.seeds(*pair) if seed in seeds]
    values, draws = [], []
    for seed in shared:
        values.append(results.value(pair.arm, seed, measure) - results.value(pair.against, seed, measure))
        own, other = (results.resampled(arm, seed, measure) for arm in pair)
        if own is not None and other is not None:
            draws.append(own - other)
    resampled = torch.stack(draws) if draws else None
    num_sources = results.num_effective_sources(measure) if draws else 1
    return Compared(pair, values, paired_difference(values, resampled, num_sources))


def build_report(opened: OpenedStudy, results: StudyResults | None) -> str:
    """Return a study's question, held-out images and tables in Markdown."""
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
    against = {arm: f" (against {other})" for arm, other in opened.comparisons()}
    against |= dict.fromkeys(results.gone, f" (gone, against {opened.study.arms[0].name})")
    counts = {arm: [seed for seed in results.seeds(arm) if seed in seeds] for arm in arms}
    scored = []
    for arm in arms:
        failed = [f"{seed} failed" for seed in seeds if (arm, seed) in results.failures]
        scored.append(", ".join([*map(str, counts[arm]), *failed]) or "none")
    rows = [["seeds", *scored]]
    primary = opened.study.primary
    for measure in dict.fromkeys([primary, *results.measures()]):
        compared = {each.pair.arm: each for each in compare(opened, results, measure, seeds)}
        cells = []
        for arm in arms:
            values = [results.value(arm, seed, measure) for seed in counts[arm]]
            difference = _shown(compared[arm]) if arm in compared else ""
            cells.append(f"{_mean(values)}<br>{difference}" if difference else _mean(values))
        rows.append([f"**{measure}** (primary)" if measure == primary else measure, *cells])
    return markdown(["", *(f"{arm}{against.get(arm, '')}" for arm in arms)], rows)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    error = f" +- {stdev(values) / sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{error}"


def _shown(compared: Compared) -> str:
    if compared.difference is None:
        return ""
    found, adjusted = compared.difference, compared.adjusted
    text = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    text = f"**{text}**" if found.excludes_zero else text
    if adjusted is None:
        return text
    return f"{text}, p < .001" if adjusted < LEAST_P else f"{text}, p = {adjusted:.2g}"


@on_any_background
def draw_figure(opened: OpenedStudy, results: StudyResults, path: Path) -> None:
    """Draw the paired differences of the primary measure and of `SHOWN`; nothing without any pair.

    Intervals stand around mean differences; each seed is a dot.

    Args:
        opened: The study.
        results: Its raw results.
        path: The image to write, atomically.
    """
    known = results.measures()
    measures = list(dict.fromkeys([opened.study.primary, *(name for name in SHOWN if name in known)]))
    rows_of = {measure: compare(opened, results, measure, opened.study.seeds) for measure in measures}
    rows_of = {measure: [each for each in rows if each.differences] for measure, rows in rows_of.items()}
    pairs = [each.pair for each in rows_of[opened.study.primary]]
    if not pairs:
        return
    size = (2.0 + 2.9 * len(measures), 1.1 + 0.42 * len(pairs))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    for axes, (measure, rows) in zip(panels, rows_of.items(), strict=True):
        axes.axvline(0, color="0.6", linewidth=0.8)
        for row, (_, dots, difference, _) in enumerate(rows):
            axes.scatter(dots, [row + 0.22] * len(dots), s=7, color="0.55")
            if difference is not None:
                margins = [[difference.mean - difference.low], [difference.high - difference.mean]]
                axes.errorbar([difference.mean], [row], xerr=margins, fmt="o", markersize=4, capsize=3, color="C0")
        axes.set_yticks(range(len(pairs)), [f"{arm} - {against}" for arm, against in pairs])
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", alpha=0.25)
        axes.set_title(f"{measure} ({better_direction(measure)})", fontsize=8)
    write_file(path, figure.savefig)
