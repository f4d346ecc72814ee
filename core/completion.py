"""Print the script that makes the tab key complete `radio` and its options.

For bash and zsh `eval "$(radio completion bash)"` in the shell's start file, for fish
`radio completion fish > ~/.config/fish/completions/radio.fish`.
"""

import sys
from collections.abc import Sequence
from typing import Literal

import argcomplete

from modeling_radio.core.command_line import Command
from modeling_radio.core.settings import Settings


class CompletionSettings(Settings):
    """Options of the command.

    Attributes:
        shell: The shell.
    """

    shell: Literal["bash", "zsh", "fish"]


COMMAND = Command(
    "radio completion",
    __doc__,
    CompletionSettings,
    positionals=("shell",),
    examples=("radio completion bash", "radio completion zsh", "radio completion fish"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(lambda settings: print(argcomplete.shellcode(["radio"], shell=settings.shell)), arguments)


if __name__ == "__main__":
    sys.exit(main())
