"""Measure a checkpoint on held-out images: kNN, segmentation probe, fidelity to its teachers and more."""

import sys
from collections.abc import Sequence

from transformers.utils import logging as transformers_logging

from foundation.command_line import Command
from model_cards.results import build_tables
from training.evaluation.checkpoint import EvaluationSettings, evaluate
from training.recipe import Recipe


COMMAND = Command("training.evaluate", __doc__, EvaluationSettings, positionals=("checkpoint",), changes=Recipe)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_evaluate, arguments)


def _evaluate(settings: EvaluationSettings) -> None:
    transformers_logging.disable_progress_bar()  # models load in no time
    results = evaluate(settings, settings.load_recipe())
    if settings.output is not None:
        results.save(settings.output)
    print("\n\n".join(table.to_markdown() for table in build_tables(results.measurements)))


if __name__ == "__main__":
    sys.exit(main())
