"""Features of anybody's images as a data set of Parquet files: `python -m training.extract CHECKPOINT --data SOURCE`.

Summaries, dense features and those of adaptors, which `datasets.load_dataset` opens. A run that was stopped goes on
with the same command; processes that `accelerate launch` starts share the work. `--search` lists the images of such a
data set that are most similar to an image or a text.
"""

import importlib
import sys
from collections.abc import Sequence

from core.command_line import Command
from core.files import sole_run
from core.ranks import rank_and_count
from training.extraction.settings import ExtractionSettings


COMMAND = Command("training.extract", __doc__, ExtractionSettings, positionals=("checkpoint",))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(
        _extract, arguments, interrupted="interrupted; the same command goes on where it was", extra="extract"
    )


def _extract(settings: ExtractionSettings) -> None:
    from transformers.utils import (
        logging as transformers_logging,
    )  # these take seconds, which `--help` need not wait for

    transformers_logging.disable_progress_bar()
    if settings.search is not None:
        _search(settings)
        return
    from model_cards.build import check_model_id
    from training.extraction.card import finish
    from training.extraction.run import extract, open_extraction

    settings.chosen_license()  # what is wrong with these would be said in the end only
    check_model_id(settings.model_id)
    if settings.index is not None:
        importlib.import_module("faiss")
    extraction = open_extraction(settings)
    with sole_run(settings.output):
        written = extract(extraction)
        if rank_and_count()[0] == 0:  # the others need not wait for it
            has_license = finish(extraction, written)
            print(
                f"{settings.output}: {written}."
                + ("" if has_license else " Its card names no license yet: --license ID does.")
            )


def _search(settings: ExtractionSettings) -> None:
    from training.extraction.search import search, to_table, write_found_page

    hits = search(settings)
    if settings.page is not None:
        write_found_page(settings, hits)
    print(to_table(hits))
    if settings.page is not None:
        print(f"\nWrote {settings.page}.")


if __name__ == "__main__":
    sys.exit(main())
