"""Measure a checkpoint on held-out images: kNN, segmentation probe, fidelity to its teachers and more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from foundation.command import run_command
from model_cards.results import build_tables
from training.evaluation.checkpoint import TASKS, evaluate
from training.recipe import load_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run_command(_parser(), _evaluate, arguments)


def _evaluate(options: argparse.Namespace) -> None:
    transformers_logging.disable_progress_bar()  # models load in no time
    recipe = load_recipe(options.recipe)
    results = evaluate(options.checkpoint, options.tasks.split(","), recipe, size=options.size)
    if options.output is not None:
        results.save(options.output)
    print("\n\n".join(table.to_markdown() for table in build_tables(results.measurements)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder with config.json and weights")
    parser.add_argument(
        "--tasks", default="knn,segmentation_probe", help=f"comma-separated, out of: {', '.join(TASKS)}"
    )
    parser.add_argument(
        "--recipe", default="demo", metavar="NAME|FILE.yaml", help="names data and teachers (default: demo)"
    )
    parser.add_argument("--size", type=int, metavar="PX", help="image side (default: the preferred resolution)")
    parser.add_argument("--output", type=Path, metavar="RESULTS.json", help="also write the numbers here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
