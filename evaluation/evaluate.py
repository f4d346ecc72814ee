"""Measure a checkpoint on your images or the demo's: kNN, probes, retrieval, fidelity to its teachers and more.

A model that is tuned for a task is measured by its own answers, unless `--tasks` names others.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_radio.core.command_line import Command
from modeling_radio.evaluation.settings import EvaluationSettings
from modeling_radio.training.recipes.recipe import Recipe


if TYPE_CHECKING:
    from modeling_radio.evaluation.models.radio import RadioFeatures
    from modeling_radio.evaluation.tasks.base import Evaluation
    from modeling_radio.figures.page import Section
    from modeling_radio.metrics.results import Results

COMMAND = Command(
    "radio evaluate",
    __doc__,
    EvaluationSettings,
    positionals=("checkpoint",),
    changes=Recipe,
    examples=(
        "radio evaluate runs/demo/final",
        "radio evaluate builtin:lite --data pets/ --tasks knn,logistic_regression --output results.json",
        "radio evaluate runs/pets/merged --data pets/test --output test.json",
        "radio evaluate runs/mine/final --table c-radio_v4 --data-root sets/",
        "radio evaluate runs/mine/final --data pets/ --compare facebook/dinov2-base,timm:resnet50.a1_in1k",
    ),
)


def run(settings: EvaluationSettings, model: "RadioFeatures | None" = None) -> "tuple[Results, list[Path]]":
    """Measure as the settings say; return the measurements and the files written, by the first rank alone.

    Args:
        settings: Settings of the evaluation.
        model: The opened checkpoint, if it is measured several times; see `run_evaluations`.

    Raises:
        ValueError: If `table` is given, whose sets are measured one by one.
    """
    if settings.table is not None:
        raise ValueError("`table` is for the command line; measure a set of it with its `preset`.")
    # These imports take seconds, which `--help` need not wait for.
    from transformers.utils import logging as transformers_logging

    from modeling_radio.core.files import write_file
    from modeling_radio.core.ranks import rank_and_count
    from modeling_radio.evaluation.own_answers import measure_answers, task_of_answers
    from modeling_radio.evaluation.report import report_sections, write_report
    from modeling_radio.evaluation.run import run_evaluations
    from modeling_radio.figures.progress import (
        CHANNELS,
        TOKEN_TASKS,
        TOKENS,
        WIDTH_TASKS,
        figure_over_counts,
        values_by_tokens,
    )

    transformers_logging.disable_progress_bar()  # models load fast
    own_task = task_of_answers(settings) if model is None else None
    sections: list[Section] = []
    evaluations: list[Evaluation] = []
    if own_task is None:
        results, evaluations = run_evaluations(settings, model)
    elif settings.truncate_dim is not None:
        raise ValueError(
            f"`truncate_dim` must be left out for the answers of a model's own head, got {settings.truncate_dim}."
        )
    else:
        results, sections = measure_answers(settings, own_task)
    written = list[Path]()
    if settings.output is not None and rank_and_count()[0] == 0:
        results.save(settings.output)
        written.append(settings.output)
        for kind, tasks, label in (("tokens", TOKEN_TASKS, TOKENS), ("widths", WIDTH_TASKS, CHANNELS)):
            panels = {
                f"{task}: {metric}": curves
                for task in tasks
                for metric, curves in values_by_tokens(results.measurements, [task]).items()
            }
            if panels:
                written.append(settings.output.with_suffix(f".{kind}.png"))
                write_file(written[-1], figure_over_counts(panels, label).savefig)
        if settings.report:
            written.append(settings.output.with_suffix(".html"))
            if evaluations:
                sections = report_sections(evaluations, {each.task for each in results.measurements})
            write_report(written[-1], results, sections)
    return results, written


def _evaluate(settings: EvaluationSettings) -> None:
    if settings.table is not None:
        from modeling_radio.evaluation.published import measure_table
        from modeling_radio.evaluation.run import measured_model

        model = measured_model(settings)
        print(measure_table(settings, lambda one: run(one, model)[0]))
        return
    results, written = run(settings)
    from modeling_radio.core.ranks import rank_and_count
    from modeling_radio.metrics.results import build_tables, class_tables

    if rank_and_count()[0] > 0:
        return
    tables = [table.to_markdown() for table in (*build_tables(results.measurements), *class_tables(results))]
    print("\n\n".join([*tables, *results.remarks]))
    if written:
        print(f"\nWrote {' and '.join(map(str, written))}.")


main = partial(COMMAND.run, _evaluate)


if __name__ == "__main__":
    sys.exit(main())
