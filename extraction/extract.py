"""Features of images as a data set of Parquet files: `radio extract CHECKPOINT --data SOURCE`.

The data set holds summaries, dense features and those of adaptors, and opens with `datasets.load_dataset`. The same
command continues an interrupted run, and joins one that is at work, also on another machine. `radio search` finds
images in it.
"""

import importlib
import sys
from functools import partial
from typing import TYPE_CHECKING

from modeling_radio.core.command_line import Command
from modeling_radio.extraction.settings import ExtractionSettings


if TYPE_CHECKING:
    from modeling_radio.extraction.run import Written

COMMAND = Command(
    "radio extract",
    __doc__,
    ExtractionSettings,
    positionals=("checkpoint",),
    examples=(
        "radio extract builtin:lite --data pets/ --output features",
        "radio extract builtin:lite --data pets/ --output features --index flat",
        'radio extract CHECKPOINT --data "train-{000..099}.tar" --output features --dense --pool 2',
    ),
)


def run(settings: ExtractionSettings) -> "tuple[Written, bool]":
    """Extract as the settings say; return what is there, and whether its card names a license."""
    # These take seconds to import, which `--help` need not wait for.
    from transformers.utils import logging as transformers_logging

    from modeling_radio.core.ranks import rank_and_count
    from modeling_radio.extraction.card import finish
    from modeling_radio.extraction.engine import check_engine
    from modeling_radio.extraction.lance_data import check_lance
    from modeling_radio.extraction.run import extract, open_extraction
    from modeling_radio.model_cards.build import check_model_id

    transformers_logging.disable_progress_bar()
    check_model_id(settings.model_id)
    check_engine(settings)
    check_lance(settings)
    if settings.index is not None:
        importlib.import_module("faiss")
    extraction = open_extraction(settings)
    written = extract(extraction)
    # The other ranks need not wait for it.
    return written, rank_and_count()[0] > 0 or finish(extraction, written)


def _extract(settings: ExtractionSettings) -> None:
    written, has_license = run(settings)
    from modeling_radio.core.ranks import rank_and_count

    if rank_and_count()[0] == 0:
        remark = "" if has_license else " Its card, README.md, names no license yet: add `license: ID`."
        print(f"{settings.output}: {written}.{remark}")


main = partial(COMMAND.run, _extract, interrupted="interrupted; the same command goes on where it was")


if __name__ == "__main__":
    sys.exit(main())
