"""Distil a student: `python -m training.distill --recipe NAME`, or the same under `accelerate launch -m`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from foundation.command import run_command
from training.recipe import list_recipes, load_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(_parser(), _distil, arguments)


def _distil(options: argparse.Namespace) -> None:
    if options.list_recipes:
        print("\n".join(list_recipes()))
        return
    recipe = load_recipe(options.recipe, options.overrides)
    # Both take seconds to import, which `--help` and a misspelt recipe need not wait for.
    from accelerate import PartialState

    from training.distillation.stages import run_recipe

    final = run_recipe(recipe, options.output, is_restart=options.restart, stop_at=options.stop_at)
    state = PartialState()
    if state.is_main_process:
        print(f"Wrote {final}." if final else "Stopped as asked by --stop-at; the same command resumes.")
    state.destroy_process_group()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.distill",
        description="Distil one student from several teachers. A run that was stopped goes on with the same command.",
    )
    parser.add_argument("--recipe", default="demo", metavar="NAME|FILE.yaml", help="what to train (default: demo)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    parser.add_argument("--list-recipes", action="store_true", help="print the names of the recipes and end")
    parser.add_argument("--restart", action="store_true", help="start anew; refuses an --output that is not empty")
    parser.add_argument(
        "--stop-at",
        type=int,
        metavar="STEP",
        help="end this session with a checkpoint at STEP, counted over all stages",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.field=value",
        help="changes, e.g. optimizer.learning_rate=1e-3",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
