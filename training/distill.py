"""Distill a student: `radio distill --recipe NAME`, or the same under `accelerate launch -m`."""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from modeling_radio.core.command_line import Command
from modeling_radio.core.settings import DeviceOptions
from modeling_radio.training.recipes.recipe import Recipe, RecipeCommand, list_recipes


class DistillSettings(RecipeCommand, DeviceOptions):
    """Settings of the command.

    Attributes:
        output: Folder of the run; by default runs/NAME.
        restart: Start from the first step; an output that is not empty is refused.
        stop_at: End this session with a checkpoint at this step, counted over all stages.
        max_minutes: End this session with a checkpoint after this many minutes; the same command continues it.
        allow_changes: Settings that may differ between the recipe and the checkpoint, for example
            data.source,optimizer.learning_rate; a section stands for all of its settings.
    """

    recipe: str
    output: Path | None = None
    restart: bool = False
    stop_at: int | None = Field(None, gt=0)
    max_minutes: float | None = Field(None, gt=0)
    allow_changes: list[str] = []


class _ListRecipes(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print("\n".join(list_recipes()))
        parser.exit()


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list-recipes", action=_ListRecipes, nargs=0, help="print the names of the recipes and end")


COMMAND = Command(
    "radio distill",
    "Distill one student from several teachers. The same command continues a stopped run.",
    DistillSettings,
    changes=Recipe,
    add_shorthands=_add_list,
    examples=(
        "radio distill --recipe demo",
        "radio distill --recipe radio_s data.source=path/to/images --output runs/mine",
        "radio distill --recipe my_recipe.yaml schedule.num_steps=1000",
    ),
)


def run(settings: DistillSettings, recipe: Recipe) -> Path | None:
    """Run a recipe as the settings say; as `run_recipe`.

    Args:
        settings: Settings of the command.
        recipe: The recipe that the settings name, with its changes.
    """
    deadline = None if settings.max_minutes is None else time.monotonic() + 60 * settings.max_minutes
    # Takes seconds to import, which `--help` and a misspelled recipe need not wait for.
    from modeling_radio.training.distillation.stages import run_recipe

    return run_recipe(
        recipe,
        folder_of(settings, recipe),
        is_restart=settings.restart,
        stop_at=settings.stop_at,
        deadline=deadline,
        allowed_changes=settings.allow_changes,
        device=settings.device,
    )


def folder_of(settings: DistillSettings, recipe: Recipe) -> Path:
    """Return the folder of a run."""
    return Path("runs") / recipe.name if settings.output is None else settings.output


def _distil(settings: DistillSettings) -> None:
    final = run(settings, settings.load_recipe())
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process:
        print(
            f"Wrote {final}."
            if final
            else f"Stopped at step {settings.stop_at} as asked. The same command without --stop-at continues."
        )
    state.destroy_process_group()


main = partial(COMMAND.run, _distil, interrupted="stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
