"""Draw boxes and masks of words in the images of a folder, as labels that `radio finetune` reads.

`radio label IMAGES --words "crack, rust" --checkpoint MODEL --output labels` takes a RADIO model with a text tower, or
SAM3. It writes COCO with a score for each object, and a page to look through: remove what is wrong, then
`radio finetune CHECKPOINT --task object-detection --data labels`.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from modeling_radio.core.command_line import Command
from modeling_radio.core.ids import ModelId
from modeling_radio.core.settings import DeviceOptions, DtypeOptions, SampleOptions


if TYPE_CHECKING:
    from modeling_radio.prediction.run import Predicted


class LabelSettings(SampleOptions, DtypeOptions, DeviceOptions):
    """Settings of labels by words.

    Attributes:
        data: Folder of images.
        words: Words of the objects, such as "crack, rust".
        checkpoint: Folder or Hub id of a RADIO model with a text tower, or of SAM3.
        output: Folder of the labels; an unfinished one of the same settings is completed.
        around: Words of what else is in the images, whose regions are left out. Each place goes to its nearest word,
            so name what surrounds the objects. SAM3 needs none and ignores them.
        threshold: Least score of an object, in [0, 1]; by default 0.1 for RADIO, 0.5 for SAM3.
        batch_size: Images for each pass.
    """

    data: str
    words: list[str] = Field(min_length=1)
    checkpoint: Annotated[ModelId, Field(min_length=1)]
    output: Path
    around: list[str] = Field(["background"])
    threshold: float | None = Field(None, ge=0, le=1)
    batch_size: int = Field(8, gt=0)


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
