"""Distills a small student from real teachers in minutes, reopens it and shows what it learned: `radio demo`.

It writes below `--output`, by default `runs/demo`: the checkpoint folder `final/` with its model card, `results.json`,
the figures `features.png` and those in `pictures`, and all of it on one page, `index.html`.
"""

import sys
from functools import partial
from pathlib import Path

from pydantic import Field

from modeling_radio.core.command_line import Command, recorded_command
from modeling_radio.core.settings import DeviceOptions
from modeling_radio.training.recipes.recipe import Recipe, RecipeCommand


class DemoSettings(RecipeCommand, DeviceOptions):
    """Options of the demo.

    Attributes:
        output: Folder for everything.
        seeds: Seeds; one run for each.
        steps: Number of training steps, for a quick look; by default the recipe's.
    """

    output: Path = Path("runs/demo")
    seeds: list[int] = [0]
    steps: int | None = Field(None, gt=0)


COMMAND = Command(
    "radio demo",
    "Distill a small student from real teachers, reopen it and show what it learned. What is fetched and the teachers' "
    "features are kept in the cache folder, which `radio doctor` prints.",
    DemoSettings,
    changes=Recipe,
    examples=(
        "radio demo",
        "radio demo --steps 40 --output runs/quick",
        "radio demo --recipe demo_long --output runs/demo-long",
    ),
)


def _demo(settings: DemoSettings) -> None:
    # These take seconds to import, which `--help` need not wait for.
    from transformers.utils import logging as transformers_logging

    from modeling_radio.demo.run import PAGE, is_finished, run_demo
    from modeling_radio.metrics.results import build_tables
    from modeling_radio.training.student.build import in_faster_precision

    transformers_logging.disable_progress_bar()
    shortened = [] if settings.steps is None else [f"schedule.num_steps={settings.steps}"]
    recipe = in_faster_precision(settings.load_recipe(*shortened))
    if is_finished(recipe, settings.output, settings.seeds, settings.device):
        print(f"This demo has ended before. Open {settings.output / PAGE}, or name another --output for a new one.")
        return
    results = run_demo(
        recipe, settings.output, settings.seeds, recorded_command(COMMAND.name, settings), settings.device
    )
    scores = [found for found in results.measurements if found.task != "adaptor_fidelity"]  # which the page has
    print(*(f"\n{table.to_text()}" for table in build_tables(scores)), sep="\n")
    print(f"\nOpen {settings.output / PAGE}: pictures, scores, curves, and what to do next.")


main = partial(COMMAND.run, _demo, interrupted="stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
