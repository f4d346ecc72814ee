"""Find the images of a data set of `radio extract` that are most similar to an image or a text."""

import sys
from functools import partial
from typing import TYPE_CHECKING

from modeling_radio.core.command_line import Command
from modeling_radio.extraction.settings import SearchSettings


if TYPE_CHECKING:
    from modeling_radio.extraction.nearest import Hit

COMMAND = Command(
    "radio search",
    __doc__,
    SearchSettings,
    positionals=("folder", "query"),
    examples=(
        "radio search features photo.jpg --checkpoint builtin:lite",
        'radio search features "a photo of a cat" --checkpoint runs/demo/words',
        "radio search features photo.jpg --checkpoint builtin:lite --data pets/ --page found.html",
    ),
)


def run(settings: SearchSettings) -> "list[Hit]":
    """Search as the settings say, and write the page where they name one; return the best first."""
    # These take seconds to import, which `--help` need not wait for.
    from transformers.utils import logging as transformers_logging

    from modeling_radio.extraction.nearest import search, write_found_page

    transformers_logging.disable_progress_bar()
    hits = search(settings)
    if settings.page is not None:
        write_found_page(settings, hits)
    return hits


def _search(settings: SearchSettings) -> None:
    hits = run(settings)
    from modeling_radio.extraction.nearest import to_table

    print(to_table(hits))
    if settings.page is not None:
        print(f"\nWrote {settings.page}.")


main = partial(COMMAND.run, _search)


if __name__ == "__main__":
    sys.exit(main())
