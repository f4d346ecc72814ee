"""Features of anybody's images as a data set of Parquet files: `python -m training.extract CHECKPOINT --data SOURCE`.

Summaries, dense features and those of adaptors, which `datasets.load_dataset` opens. A run that was stopped goes on
with the same command; processes that `accelerate launch` starts share the work. `--search` lists the images of such a
data set that are most similar to an image or a text.
"""

import sys
from collections.abc import Sequence

from foundation.command_line import Command
from foundation.ranks import rank_and_count
from training.extraction.settings import ExtractionSettings


COMMAND = Command("training.extract", __doc__, ExtractionSettings, positionals=("checkpoint",))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(
        _extract, arguments, interrupted="interrupted; the same command goes on where it was", extra="extract"
    )


def _extract(settings: ExtractionSettings) -> None:
    from transformers.utils import (
        logging as transformers_logging,  # these take seconds, which `--help` need not wait for
    )

    from training.extraction.run import extract, open_extraction

    transformers_logging.disable_progress_bar()
    written = extract(open_extraction(settings))
    if rank_and_count()[0] == 0:
        print(f"{settings.output}: {written}.")


if __name__ == "__main__":
    sys.exit(main())
