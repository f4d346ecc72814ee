"""Train FeatSharp for a frozen teacher: finer features, from tiles of the image.

See training/teachers/run_modes/featsharp.py.
"""

import sys
from collections.abc import Sequence

from foundation.command_line import Command
from training.recipe import Recipe
from training.upsampling import UpsamplerSettings, train_upsampler


COMMAND = Command(
    "training.train_upsampler",
    "Train FeatSharp, a small network that makes a frozen teacher's features finer, and measure it on held-out images. "
    "A run that was stopped goes on with the same command.",
    UpsamplerSettings,
    positionals=("teacher",),
    changes=Recipe,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_train, arguments)


def _train(settings: UpsamplerSettings) -> None:
    print(train_upsampler(settings, settings.load_recipe()))


if __name__ == "__main__":
    sys.exit(main())
