"""Print the script that makes the tab key complete `radio` and its options.

For bash and zsh `eval "$(radio completion bash)"` in the shell's start file, for fish
`radio completion fish > ~/.config/fish/completions/radio.fish`.
"""

import sys
from collections.abc import Sequence
from typing import Literal

import argcomplete

from modeling_radio.core.command_line import Command, run_command
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
    words = sys.argv[1:] if arguments is None else list(arguments)
    return run_command(COMMAND.name, lambda: _print(COMMAND.read(words)), show_traceback="--traceback" in words)


def _print(settings: CompletionSettings) -> None:
    print(argcomplete.shellcode(["radio"], shell=settings.shell))


if __name__ == "__main__":
    sys.exit(main())
