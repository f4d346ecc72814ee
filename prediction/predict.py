"""Answer for all images of a folder or a stream: `radio predict TUNED IMAGES --output answers`.

Classes are written as CSV and lines of JSON, boxes and masks also as COCO, maps of classes as PNG, depth as PNG of 16
bits; a page shows the first images. An image that cannot be read is left out and named.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from modeling_radio.core.command_line import Command
from modeling_radio.core.ids import ModelId
from modeling_radio.core.settings import DeviceOptions, DtypeOptions, ImageSourceOptions, TileOptions


if TYPE_CHECKING:
    from modeling_radio.prediction.run import Predicted


class PredictSettings(ImageSourceOptions, TileOptions, DtypeOptions, DeviceOptions):
    """Settings of predictions.

    Attributes:
        checkpoint: Folder or Hub id of a tuned model or adapter, or of one with a text tower.
        data: Folder of images, or `.parquet` or `.tar` files, a pattern or a folder of them, or `ORG/NAME` on the Hub.
        output: Folder of the answers; an unfinished one of the same settings is completed.
        classes: Classes of a zero-shot model, in words.
        threshold: Least score of classes or objects, in [0, 1], or "tuned" for that of each class; by default objects
            have that of the model, and all classes are written.
        base: Folder or Hub id of an adapter's base; by default the one on the Hub that the adapter names.
        batch_size: Images for each pass.
    """

    checkpoint: Annotated[ModelId, Field(min_length=1)]
    data: str
    output: Path
    classes: list[str] | None = Field(None, min_length=1)
    threshold: float | Literal["tuned"] | None = None
    base: str | None = None
    batch_size: int = Field(16, gt=0)


COMMAND = Command(
    "radio predict",
    __doc__,
    PredictSettings,
    positionals=("checkpoint", "data"),
    examples=(
        "radio predict runs/pets/merged photos --output answers",
        "radio predict runs/coco/merged photos --output boxes --threshold tuned",
        "radio predict runs/roads/merged survey --output roads --tile-size 512",
        "radio predict runs/demo/words photos --output words --classes cat,dog,bird",
        "radio predict runs/pets/final 'shards/*.tar' --streaming --output answers --base runs/demo/final",
    ),
)


def run(settings: PredictSettings) -> "Predicted":
    """Write the answers, and return their counts; as `prediction.run.predict_all`."""
    from modeling_radio.prediction.run import predict_all  # takes seconds, which `--help` need not wait for

    return predict_all(settings)


def _predict(settings: PredictSettings) -> None:
    print(run(settings))


main = partial(COMMAND.run, _predict, interrupted="interrupted; the same command goes on", extra="tasks")


if __name__ == "__main__":
    sys.exit(main())
