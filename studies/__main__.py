"""Small runs that differ in one thing, over paired seeds: `radio study STUDY.yaml --jobs 2`.

A study names a recipe, arms that each change it, seeds, and one measure that decides. Its raw results lie beside its
file, `STUDY.jsonl`, a line for each run: a run with a line is not made again. The tables and the figure `STUDY.webp`
are made of them. Those of our own studies lie in `--output` where the package is installed.
"""

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from modeling_radio.core.command_line import Command
from modeling_radio.core.files import write_text
from modeling_radio.core.settings import DeviceOptions, require


if TYPE_CHECKING:
    from modeling_radio.studies.study import OpenedStudy


class StudiesSettings(DeviceOptions):
    """Studies to run.

    Attributes:
        studies: Names of files in studies without .yaml, or files of your own that end in .yaml.
        jobs: Number of runs at the same time, each with one thread.
        seeds: Seeds instead of the studies' own, for example to see whether a result repeats.
        output: Folder of the runs.
        train: Run what has no raw result yet.
        report: Markdown file that the tables of these studies are also written to.
    """

    studies: list[str] = Field(min_length=1)
    jobs: int = Field(1, gt=0)
    seeds: list[int] | None = None
    output: Path = Path("runs/ablate")
    train: bool = True
    report: Path | None = None

    @model_validator(mode="after")
    def _check_seeds(self) -> "StudiesSettings":
        require(self.train or self.seeds is None, "seeds", self.seeds, "left out where nothing is run")
        return self


COMMAND = Command(
    "radio study",
    "Run studies: recipes that differ in one thing, with paired seeds, measured on held-out images.",
    StudiesSettings,
    positionals=("studies",),
    examples=(
        "radio study my_study.yaml",
        "radio study weightings --jobs 2",
        "radio study weightings --no-train",
    ),
)


def run_studies(settings: StudiesSettings) -> None:
    """Run studies and write their reports.

    Raises:
        RecipeError: If a study cannot be used, or raw results are of other recipes or images.
        Interrupted: If it was asked to stop.
    """
    # These take seconds to import, which `--help` need not wait for.
    import torch
    from transformers.utils import logging as transformers_logging

    from modeling_radio.studies.runs import run_study
    from modeling_radio.studies.study import open_study

    transformers_logging.disable_progress_bar()
    studies = [open_study(source, settings.output) for source in settings.studies]  # all, before the first is run
    importlib.import_module("scipy")  # runs are compared with it: a missing package is an error before the first run
    names = [opened.name for opened in studies]
    require(len(set(names)) == len(names), "studies", names, "studies of different names")
    if settings.train:
        torch.set_num_threads(1)
        for opened in studies:
            seeded = opened if settings.seeds is None else opened.with_seeds(settings.seeds)
            run_study(seeded, settings.output / opened.name, settings.jobs, settings.device)
    sections = [f"## {opened.name}\n\n{_summarize(opened)}\n" for opened in studies]
    if settings.report is not None:
        write_text(settings.report, "\n".join(sections))
        print(f"Wrote {settings.report}.")


def _summarize(opened: "OpenedStudy") -> str:
    """Draw a study's figure, print its report and return it."""
    from modeling_radio.studies.raw_results import load_results
    from modeling_radio.studies.report import build_report, draw_figure
    from modeling_radio.studies.runs import missing_runs

    results = load_results(opened)
    report = build_report(opened, results)
    if results is None:
        print(f"{opened.name}: no raw results yet, {len(missing_runs(opened))} runs to make.")
    else:
        draw_figure(opened, results, opened.raw_results.with_suffix(".webp"))
        print(f"{opened.name}\n\n{report}\n")
    return report


main = partial(COMMAND.run, run_studies, interrupted="Stopped: the same command goes on.")


if __name__ == "__main__":
    sys.exit(main())
