"""Writes `benchmarks/RESULTS.md` from the stored results: the newest of each benchmark, subject and machine."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring.results import RESULTS, Result, load_results, table_of
from benchmarks.pages.figures import DRAWINGS, draw, figure_of, is_current
from foundation.files import write_text


PAGE = RESULTS.parent / "RESULTS.md"
HEAD = """# What the benchmarks measured

Written by `python -m benchmarks.all --parts page` from `benchmarks/results/`: the newest result of each benchmark and
machine. Ratios are medians of those of the same round, with quartiles in brackets; above 1 the one named first is
faster. [Benchmarks](../docs/benchmarks.md) says what follows from it.
"""
LEAST_GROUPED = 10_000
"""From here on numbers have commas between thousands, and no fraction."""
Rows = Sequence[Mapping[str, Any]]


class Section(NamedTuple):
    """Results of one program.

    Attributes:
        program: Whose results.
        title: Of the section.
        text: What was done, in a sentence.
        condense: Makes the rows of the table from those that are stored.
    """

    program: str
    title: str
    text: str
    condense: Callable[[Rows], Rows] = lambda rows: rows


def condense_speed(rows: Rows) -> Rows:
    """Return one row for each contender, data type and batch: milliseconds and the ratio to native at each size."""
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        batch = "one" if row["batch"] == 1 else "full"
        key = (row["dtype"], batch, row["contender"])
        line = table.setdefault(key, {"dtype": row["dtype"], "batch": batch, "network": row["contender"]})
        line[f"{row['size_px']} px, ms"] = row["ms"]
        line[f"{row['size_px']} px, times native"] = row["times as fast as native"].split()[0]
        line[f"{row['size_px']} px, share of peak"] = row["share of peak"]
        if "exponent" in row:
            line[f"exponent to {row['size_px']} px"] = row["exponent"]
    return list(table.values())


def condense_best(rows: Rows) -> Rows:
    """Return ours beside the fastest of native, timm and plain code at equal work, at each size."""
    columns = ("dtype", "size_px", "batch", "best of equal work", "times as fast as that")
    return [{column: row[column] for column in columns} for row in rows if "best of equal work" in row]


SECTIONS = (
    Section(
        "inference_speed",
        "Ours beside the fastest at equal work",
        "Ours, global attention, and the fastest of native, timm and plain code, token for token the same work.",
        condense_best,
    ),
    Section(
        "inference_speed",
        "All networks",
        "Random weights in the shape of the preset. SigLIP2 and SAM3 have patch tokens only, SAM3 windows of 24.",
        condense_speed,
    ),
    Section(
        "inference_windows",
        "Windows",
        "Ours with windows beside ours with global attention. The Amdahl limit is that of a pass without the attention "
        "of windowed blocks, of which the share was timed in the same run.",
    ),
    Section(
        "inference_packed",
        "Mixed sizes",
        "Sixteen images of eight sizes: sides of 48 to 96 px (thumbnails) and 160 to 320 px (photographs).",
    ),
    Section("inference_memory", "Memory", "Weights and one image at most, each network in a process of its own."),
    Section(
        "inference_cold_start", "Cold start", "From the start of a process to the features of one image of 224 px."
    ),
    Section(
        "inference_fidelity",
        "Cosine over the size of the image",
        "A trained student's features beside those in float32 with global attention, on photographs.",
    ),
    Section(
        "inference_global_tokens",
        "RADIO1D",
        "One image; the plain network is the same without mergings. At 224 px 64 tokens mean all 49 that there are.",
    ),
    Section(
        "inference_choices",
        "Other choices",
        "Times as fast as ours with global attention; windows of 8 that leave a rest of one patch along both sides, "
        "beside windows that leave none, by patch.",
    ),
    Section("inference_large", "Published shapes", "On a GPU, bfloat16."),
    Section(
        "int8",
        "Linear layers in 8 bits",
        "`python -m benchmarks.int8`. Windows, and the profile of where the time goes, are at its `--window-px`.",
    ),
    Section("int8_quality", "What 8 bits cost a trained student", "`python -m benchmarks.int8 --student FOLDER`."),
    Section("stack", "One pass for three teachers", "`python -m benchmarks.stack`."),
    Section("loading", "from_pretrained", "`python -m benchmarks.loading`."),
    Section("preprocessing", "Preprocessing", "`python -m benchmarks.preprocessing`."),
    Section(
        "training",
        "The distillation step beside other trainers",
        "Equal student, teacher and batch, random weights, images decoded in the process that trains: "
        "`python -m benchmarks.training`. Data is the time of images and teacher, the rest is the student's.",
    ),
    Section(
        "training_student",
        "The student's part of the step",
        "All of a step but images and teachers, beside the bare forward and backward pass of the same network on the "
        "same images: the share is that of the bare passes in it. The last columns: what the bare passes compute, and "
        "the time in which a product of two large matrices does as much.",
    ),
    Section(
        "training_ranks",
        "Growth with ranks, on paper",
        "Not measured: gradients averaged in a ring, none of it hidden behind the backward pass.",
    ),
    Section("checkouts", "The step of two checkouts", "`python -m benchmarks.checkouts --against FOLDER`."),
    Section("training_options", "Options of the step", "`python -m benchmarks.training_options`."),
    Section("serving", "A server under load", "`python -m benchmarks.serving`."),
    Section("feature_cache", "Cached features", "`python -m benchmarks.feature_cache`."),
    Section("data", "Data", "`python -m benchmarks.data`."),
)


def newest(results: Sequence[Result]) -> list[Result]:
    """Return the last result of each subject and machine, whatever its threads."""
    found = {(result.subject, result.machine["processor"], result.machine.get("gpu")): result for result in results}
    return list(found.values())


def build_page(folder: Path = RESULTS) -> str:
    """Return the page of the results in a folder."""
    parts, drawn = [HEAD], set()
    for section in SECTIONS:
        results = newest(load_results(section.program, folder))
        if results:
            parts.append(f"## {section.title}\n\n{section.text}\n")
        for result in results:
            parts.append(f"{caption(result)}\n")
            parts.append(f"{table_of(section.condense(result.rows))}\n")
            parts.extend(f"{name}:\n\n{table_of(value)}\n" for name, value in result.facts.items() if is_table(value))
            if section.program in DRAWINGS and figure_of(result) not in drawn:
                drawn.add(figure_of(result))
                place = os.path.relpath(figure_of(result), PAGE.parent)
                parts.append(f"![{section.title}: {DRAWINGS[section.program].quantity}]({place})\n")
    return "\n".join(parts)


def caption(result: Result) -> str:
    """Return what the numbers of a result depend on, in a line."""
    machine = result.machine
    where = ", ".join([*([machine["gpu"]] if "gpu" in machine else []), machine["processor"]])
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "timm") if name in machine)
    facts = "".join(f"; {fact_text(name, value)}" for name, value in result.facts.items() if not is_table(value))
    return f"**{result.subject}**, {where}, {machine['threads']} threads, {machine['date']}; {versions}{facts}"


def is_table(value: object) -> bool:
    """Return whether a fact consists of rows, which stand in a table of their own."""
    return isinstance(value, list)


def fact_text(name: str, value: object) -> str:
    """Return a fact in words, such as `dtype float32` or `requests: answered 12,000, lost 0`."""
    if isinstance(value, Mapping):
        return f"{name}: " + ", ".join(fact_text(*each) for each in value.items())
    is_large = isinstance(value, int | float) and abs(value) >= LEAST_GROUPED
    return f"{name} {value:,.0f}" if is_large else f"{name} {value}"


def drawn_results(folder: Path = RESULTS) -> list[Result]:
    """Return the results that have figures on the page."""
    return [result for program in DRAWINGS for result in newest(load_results(program, folder))]


def write_page() -> None:
    """Write the page, and those figures that are not current."""
    for result in drawn_results():
        if not is_current(result, figure_of(result)):
            draw(result, figure_of(result))
    write_text(PAGE, build_page())
    print(f"Wrote {PAGE}.")
