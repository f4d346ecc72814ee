"""Answer for all images of a folder or a stream: `radio predict TUNED IMAGES --output answers`.

Classes are written as CSV and lines of JSON, boxes and masks also as COCO, maps of classes as PNG, depth as PNG of 16
bits; a page shows the first images. An image that cannot be read is left out and named.
"""

import sys
from functools import partial
from typing import TYPE_CHECKING

from modeling_radio.core.command_line import Command
from modeling_radio.prediction.settings import PredictSettings


if TYPE_CHECKING:
    from modeling_radio.prediction.run import Predicted

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
