"""What a study says: one table of means and paired differences, and the text around it."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import NamedTuple

import torch

from foundation.tables import markdown
from training.ablation.lengths import LENGTHS
from training.ablation.measures import CONSISTENCY, EXPLANATIONS, better_direction
from training.ablation.raw_results import HELD_OUT, HeldOutSums, StudyResults, load_raw, load_runs
from training.ablation.statistics import Difference, draw_sources, holm, paired_difference
from training.ablation.study import Comparison, OpenedStudy
from training.ablation.tokens import TOKEN_CURVES
from training.recipe_sections.images import DEFAULT_BATCH_SIZE


CONCLUSIONS = "conclusions.md"
FIGURE = "differences.png"
CURVES = "curves.png"

HEADER = """# Ablations

Written by `python -m training.ablate` from the raw results below `studies/`; only the conclusions are by hand.

```bash
python -m training.ablate weightings --jobs 2                         # runs what has no raw result yet
python -m training.ablate weightings --seeds 5,6,7,8,9 --jobs 2       # the same once more
python -m training.ablate {names} --no-train --report training/ABLATIONS.md
```

Each arm is a patch on a recipe, run in one thread with the same seeds as the others: seed for seed they start from the
same weights (where they have the same shapes) and see the same images. All are measured on held-out images that no
training saw: scenes of real cut-outs on photographs, crops of photographs, cut-outs alone and emoji.

| measure | what it is |
| --- | --- |
{measures}

A cell is a mean over seeds and its standard error. Below it, the mean difference to the arm that the first row names,
over the seeds that both have, with its 95 % interval: its variance is that between seeds, plus that of a bootstrap over
the pictures that most of each image shows (kNN, mIoU, fixed pattern and shift error: of seeds alone, so that they say
nothing of other images; kNN's 99 objects alone make a standard error of about .05). Most images are of a few pictures:
an interval has the degrees of freedom of as many as carry them, which each study names. Bold excludes zero. Processors
round differently; each raw result names its own.
**One measure of each study was chosen before the runs; its p-values are corrected by Holm for the study's comparisons,
and only they decide what a study finds.** The others describe, without correction: one of twenty such intervals
excludes zero by chance. Recipes' defaults weigh what all of them say; where one does not follow the primary measure,
the conclusions say so.
"""


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


def load_results(opened: OpenedStudy) -> StudyResults | None:
    """Read the raw results of a study; None where there are none.

    Raises:
        RecipeError: If some are damaged, or of other recipes or images.
    """
    path = opened.folder / HELD_OUT
    if not path.is_file():
        return None
    held_out = load_raw(path, HeldOutSums)
    runs = load_runs(opened.folder, held_out, opened.recipes)
    scored = {run: result for run, result in runs.items() if not result.failure}
    failures = {run: result.failure for run, result in runs.items() if result.failure}
    return StudyResults(held_out, scored, failures, draw_sources(held_out.num_sources)) if runs else None


def compare(opened: OpenedStudy, results: StudyResults, measure: str, seeds: Sequence[int]) -> list[Compared]:
    """Return the differences of a measure, over those seeds that both arms were run with."""
    found = [(pair, _difference(results, pair, measure, seeds)) for pair in opened.comparisons()]
    adjusted: list[float | None] = [None] * len(found)
    if measure == opened.study.primary:  # what has no p-value yet counts as well: the last run must not lift the others
        adjusted = [*holm([1.0 if difference is None else difference.p_value for _, difference in found])]
    return [Compared(*each, p_value) for each, p_value in zip(found, adjusted, strict=True)]


def _difference(results: StudyResults, pair: Comparison, measure: str, seeds: Sequence[int]) -> Difference | None:
    shared = [seed for seed in results.seeds(pair.arm, pair.against) if seed in seeds]
    values = [results.value(pair.arm, seed, measure) - results.value(pair.against, seed, measure) for seed in shared]
    draws = []
    for seed in shared:
        own, other = (results.resampled(arm, seed, measure) for arm in pair)
        draws += [] if own is None or other is None else [own - other]
    if not draws:
        return paired_difference(values, None, 1)
    return paired_difference(values, torch.stack(draws), results.num_effective_sources(measure))


def build_table(opened: OpenedStudy, results: StudyResults, seeds: Sequence[int]) -> str:
    """Return a Markdown table with a row for each measure, the primary one first, and a column for each arm."""
    arms = [arm.name for arm in opened.study.arms]
    against = {pair.arm: pair.against for pair in opened.comparisons()}
    header = ["", *(f"{arm} (against {against[arm]})" if arm in against else arm for arm in arms)]
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
    return markdown(header, rows)


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
    return text if adjusted is None else f"{text}, p = {adjusted:.2g}"


def build_section(opened: OpenedStudy, results: StudyResults | None) -> str:
    """Return the section of a study in `ABLATIONS.md`, without its heading: question, table, figure, conclusions."""
    study = opened.study
    if results is None:
        return f"{study.question.strip()}\n\nNot run yet. Primary measure: `{study.primary}`."
    parts = [study.question.strip(), _facts(opened, results), build_tables(opened, results)]
    if (opened.folder / FIGURE).is_file():
        parts.append(f"![Paired differences of the study {opened.name}](studies/{opened.name}/{FIGURE})")
    if (opened.folder / LENGTHS).is_file():
        parts.append(f"![Lengths of the study {opened.name}](studies/{opened.name}/{LENGTHS})")
    if (opened.folder / CURVES).is_file():
        parts.append(f"![Measurements on the way of the study {opened.name}](studies/{opened.name}/{CURVES})")
    if (opened.folder / TOKEN_CURVES).is_file():
        parts.append(f"![Global tokens of the study {opened.name}](studies/{opened.name}/{TOKEN_CURVES})")
    conclusions = opened.folder / CONCLUSIONS
    text = conclusions.read_text(encoding="utf-8").strip() if conclusions.is_file() else "Not drawn yet."
    return "\n\n".join([*parts, f"**Conclusions.** {text}"])


def build_tables(opened: OpenedStudy, results: StudyResults) -> str:
    """Return the table of a study's seeds, and where it was run with others, theirs and what held."""
    parts = [build_table(opened, results, opened.study.seeds)]
    others = sorted({seed for _, seed in [*results.runs, *results.failures]} - set(opened.study.seeds))
    if others:
        shown = ", ".join(map(str, others))
        parts += [f"Once more, with seeds {shown}:", build_table(opened, results, others)]
        parts += [_replication(opened, results, others)]
    if results.failures:
        lines = [f"- {arm}, seed {seed}: {failure}" for (arm, seed), failure in results.failures.items()]
        parts.append("\n".join(["Runs without scores, which means and differences leave out:", "", *lines]))
    return "\n\n".join(parts)


def _facts(opened: OpenedStudy, results: StudyResults) -> str:
    study, held_out = opened.study, results.held_out
    steps = sorted({recipe.schedule.num_steps for recipe in opened.recipes.values()})
    done = sum(seed in study.seeds for _, seed in [*results.runs, *results.failures])
    planned = len(study.seeds) * len(study.arms)
    state = "" if done == planned else f" **Not finished: {done} of {planned} runs.**"
    data = opened.reference.data
    changes = f" with `{' '.join(study.changes)}`" if study.changes else ""
    return (
        f"Recipe `{study.recipe}`{changes}: {' / '.join(map(str, steps))} steps{_batch(opened)}, data `{data.source}`"
        f" ({'all' if data.num_images is None else f'{data.num_images:,}'} images), teachers "
        f"{', '.join(f'`{teacher.name}`' for teacher in opened.reference.teachers)}. "
        f"Measured on {held_out.num_images:,} images of {held_out.num_sources} source pictures (as much evidence as "
        f"{results.num_effective_sources(CONSISTENCY):.0f} of equal share) at {held_out.size_px} px"
        f" (consistency: {', '.join(map(str, held_out.sizes_px))} px). "
        f"Primary measure: `{study.primary}`, {better_direction(study.primary)}.{state}"
    )


def _batch(opened: OpenedStudy) -> str:
    sizes = {sum(entry.batch_size or 0 for entry in recipe.partitions) for recipe in opened.recipes.values()}
    return (
        f" of {sizes.pop()} images" if len(sizes) == 1 and 0 not in sizes else f" of about {DEFAULT_BATCH_SIZE} images"
    )


def _replication(opened: OpenedStudy, results: StudyResults, others: Sequence[int]) -> str:
    """Say of each difference whose interval excluded zero whether it did again, with the same sign.

    Where the worst teacher is one and the same in all runs, its difference is told once.
    """
    lines, told = [], set()
    for measure in dict.fromkeys([opened.study.primary, *results.measures()]):
        first = compare(opened, results, measure, opened.study.seeds)
        again = compare(opened, results, measure, others)
        for old, new in zip(first, again, strict=True):
            if old.difference is None or not old.difference.excludes_zero:
                continue
            fact = (measure.partition("/")[0], old.pair, old.difference.mean)
            if fact in told:
                continue
            told.add(fact)
            lines.append(f"- `{measure}`, {old.pair.arm}: {old.difference.mean:+.4f}, {_repeated(old, new)}")
    return "\n".join(["What excluded zero, and what became of it:", "", *(lines or ["- nothing excluded zero"])])


def _repeated(old: Compared, new: Compared) -> str:
    """Say what became of a difference."""
    assert old.difference is not None
    if new.difference is None:
        return "not repeated with two seeds yet"
    is_same = old.difference.mean * new.difference.mean > 0
    held = "held" if is_same and new.difference.excludes_zero else "same sign" if is_same else "other sign"
    return f"then {new.difference.mean:+.4f}: {held}"


def build_report(sections: Sequence[tuple[str, str]]) -> str:
    """Return the text of `ABLATIONS.md`.

    Args:
        sections: Name of each study, and what `build_section` returned.
    """
    measures = "\n".join(f"| `{name}` | {text} |" for name, text in EXPLANATIONS.items())
    names = " ".join(name for name, _ in sections)
    head = HEADER.format(measures=measures, names=names)
    return "\n".join([head, *(f"## {name}\n\n{text}\n" for name, text in sections)])
