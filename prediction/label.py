"""Draw boxes and masks of words in the images of a folder, as labels that `radio finetune` reads.

`radio label IMAGES --words "crack, rust" --checkpoint MODEL --output labels` takes a RADIO model with a text tower, or
SAM3. It writes COCO with a score for each object, and a page to look through: remove what is wrong, then
`radio finetune CHECKPOINT --task object-detection --data labels`.
"""

import sys
from functools import partial
from typing import TYPE_CHECKING

from modeling_radio.core.command_line import Command
from modeling_radio.prediction.settings import LabelSettings


if TYPE_CHECKING:
    from modeling_radio.prediction.run import Predicted

COMMAND = Command(
    "radio label",
    __doc__,
    LabelSettings,
    positionals=("data",),
    examples=(
        'radio label photos --words "crack, rust" --around "concrete, sky" --checkpoint my-folder --output labels',
        "radio label photos --words bird --checkpoint facebook/sam3 --output birds",
    ),
)


def run(settings: LabelSettings) -> "Predicted":
    """Write the labels, and return their counts; as `prediction.words.label_all`."""
    from modeling_radio.prediction.words import label_all  # takes seconds, which `--help` need not wait for

    return label_all(settings)


def _label(settings: LabelSettings) -> None:
    print(run(settings))


main = partial(COMMAND.run, _label, interrupted="interrupted; the same command goes on", extra="tasks")


if __name__ == "__main__":
    sys.exit(main())
