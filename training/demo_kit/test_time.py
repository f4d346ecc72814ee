"""What options at test time are worth, on models of the grid: `python -m training.demo_kit.test_time`.

Several looks at an image, tiles of large ones, a temperature and thresholds, each with and without on the same held-out
images. The raw numbers go into training/studies/tuning/test_time, and with the others' into training/FINETUNING.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from foundation.command_line import Command
from foundation.files import write_text
from foundation.machine.timing import Clock
from foundation.settings import Settings
from training.demo_kit.tuning.raw_results import REPORT, RESULTS_DIR


class OptionSettings(Settings):
    """Which models shall be asked.

    Attributes:
        seeds: Models of these seeds, which the grid has tuned.
        num_images: How many held-out images of each task are looked at in every way, at most; four are one large image.
        checkpoint: Folder of the student, by default that of `make demo`.
        output: Folder of the grid's runs.
        results: Folder of the raw results.
        report: Markdown file to write.
    """

    seeds: list[int] = Field([0, 1, 2], min_length=1)
    num_images: int = Field(200, ge=4)
    checkpoint: Path = Path("runs/demo/final")
    output: Path = Path("runs/finetune-grid")
    results: Path = RESULTS_DIR
    report: Path = REPORT


COMMAND = Command(
    "training.demo_kit.test_time",
    "Measure what several looks at an image, temperatures and thresholds are worth on the models of the grid.",
    OptionSettings,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_run, arguments)


def _run(settings: OptionSettings) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    from training.demo_kit.tuning.report import build_report
    from training.demo_kit.tuning.runs import Grid
    from training.demo_kit.tuning.test_time.looks import ARM, measure
    from training.demo_kit.tuning.test_time.results import FittedScore, LookScore, Measured, save
    from training.evaluation.provenance import describe_run

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)  # times are compared
    grid = Grid(settings.checkpoint, settings.checkpoint, settings.output, settings.results)
    scores: list[LookScore | FittedScore] = []
    clock = Clock()
    for seed in settings.seeds:
        with clock.phase(f"seed {seed}"):
            for score in measure(grid, seed, settings.num_images):
                scores.append(score)
                print(score, flush=True)
    looks = [score for score in scores if isinstance(score, LookScore)]
    fitted = [score for score in scores if isinstance(score, FittedScore)]
    run = describe_run("python -m training.demo_kit.test_time", clock)
    save(settings.results, Measured(ARM, looks, fitted, run))
    write_text(settings.report, build_report(settings.results))
    print(f"Wrote {settings.report}.")


if __name__ == "__main__":
    sys.exit(main())
