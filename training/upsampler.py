"""Train an upsampler for a teacher of a recipe: `radio upsampler TEACHER`."""

import sys
from functools import partial

from modeling_radio.core.command_line import Command
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.upsampling.settings import UpsamplerSettings


COMMAND = Command(
    "radio upsampler",
    "Train FeatSharp, a small network that makes a frozen teacher's features finer, and measure it on held-out images. "
    "The same command continues a stopped run.",
    UpsamplerSettings,
    positionals=("teacher",),
    changes=Recipe,
    examples=(
        "radio upsampler dinov2-s-saliency --recipe demo",
        "radio upsampler dinov2-s-saliency --recipe demo --output runs/sharp",
        "radio upsampler dinov2-s-saliency --recipe demo data.source=path/to/images",
    ),
)


def _run(settings: UpsamplerSettings) -> None:
    from modeling_radio.training.upsampling.trainer import train_upsampler  # imports torch: takes seconds

    print(train_upsampler(settings, settings.load_recipe()))


main = partial(COMMAND.run, _run)


if __name__ == "__main__":
    sys.exit(main())
