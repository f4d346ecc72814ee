"""Every way of tuning on every task of the demo, over seeds: `python -m training.demo_kit.finetune_grid`.

A run whose raw result lies in training/studies/tuning is not repeated, wherever it was made. From all of them
training/FINETUNING.md is written, with pictures of all scores and of what the first seed's models make of images.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator
from tqdm import tqdm

from foundation.command_line import Command
from foundation.files import write_text
from foundation.settings import Settings, require
from training.demo_kit.tuning.experiments import EXPERIMENTS, arms_of
from training.demo_kit.tuning.raw_results import REPORT, RESULTS_DIR


class GridSettings(Settings):
    """What shall be run.

    Attributes:
        tasks: Names of tasks; by default all.
        arms: Ways of tuning, as the report names them; by default all that a task has.
        seeds: One run of each for each, but of those that take long, which seed 0 alone runs unless they are named.
        jobs: Runs side by side, each with one thread.
        checkpoint: Folder of the student, by default that of `make demo`.
        words: Folder of the student with words, by default that of `training.demo_kit.add_words`.
        output: Folder of the runs.
        results: Folder of the raw results.
        report: Markdown file to write.
        train: Make the runs that have no raw result.
    """

    tasks: list[str] = list(EXPERIMENTS)
    arms: list[str] = []
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    jobs: int = Field(1, gt=0)
    checkpoint: Path = Path("runs/demo/final")
    words: Path = Path("runs/demo/words")
    output: Path = Path("runs/finetune-grid")
    results: Path = RESULTS_DIR
    report: Path = REPORT
    train: bool = True

    @model_validator(mode="after")
    def _check_names(self) -> "GridSettings":
        unknown = [name for name in self.tasks if name not in EXPERIMENTS]
        require(not unknown, "tasks", self.tasks, f"some of {', '.join(EXPERIMENTS)}")
        known = dict.fromkeys(arm for name in self.tasks for arm in arms_of(EXPERIMENTS[name]))
        require(set(self.arms) <= known.keys(), "arms", self.arms, f"some of {'; '.join(known)}")
        return self


COMMAND = Command(
    "training.demo_kit.finetune_grid",
    "Compare ways of tuning on every task of the demo; what has a raw result is not run again.",
    GridSettings,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_run, arguments, interrupted="interrupted; the same command goes on")


def _run(settings: GridSettings) -> None:
    # transformers imports bitsandbytes wherever it is installed, and that says at once what it cannot download.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # These take seconds, which `--help` need not wait for.
    from training.demo_kit.tuning.pictures import draw_lengths, draw_runs, draw_scores
    from training.demo_kit.tuning.report import build_report
    from training.demo_kit.tuning.runs import Grid, run_grid

    if settings.train:
        grid = Grid(settings.checkpoint, settings.words, settings.output, settings.results)
        missing = grid.missing(settings.tasks, settings.arms, settings.seeds)
        for task, arm, seed in tqdm(run_grid(grid, missing, settings.jobs), total=len(missing), unit="run"):
            tqdm.write(f"{task}: {arm}, seed {seed}")
            write_text(settings.report, build_report(settings.results))
        for name in settings.tasks:
            draw_runs(grid, name, settings.seeds[0])
    draw_scores(settings.results)
    for name in EXPERIMENTS:
        draw_lengths(settings.results, name)
    write_text(settings.report, build_report(settings.results))
    print(f"Wrote {settings.report}.")


if __name__ == "__main__":
    sys.exit(main())
