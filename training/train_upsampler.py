"""Train FeatSharp for a frozen teacher: finer features, from tiles of the image.

See training/teachers/run_modes/featsharp.py.
"""

import sys
from collections.abc import Sequence

from foundation.command_line import Command
from training.recipe import Recipe
from training.upsampling.settings import UpsamplerSettings


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
    # It takes seconds to import, which `--help` and a misspelled recipe need not wait for.
    from training.upsampling.run import train_upsampler

    recipe = settings.load_recipe()
    print(train_upsampler(settings, recipe))


if __name__ == "__main__":
    sys.exit(main())
