"""Commands that are forks of one process, which has imported all that they need.

A process spends its time on imports. So one process imports a command's modules, and every run of the command is a fork
of it, with a session, a folder and outputs of its own, which ends as an interpreter does. This file is both ends: the
class that tests use and, as a script, the process that forks.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType


class Command:
    """A command that runs, with the methods of `subprocess.Popen` that tests of signals need; its context kills it.

    `constants` of its module have other values in it.
    """

    def __init__(
        self, server: "subprocess.Popen[bytes]", words: Sequence[str], folder: Path, said: str, **constants: float
    ) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self.returncode: int | None = None
        self._answers = server.stdout
        request = {"words": list(words), "folder": str(folder), "said": said, "constants": constants}
        server.stdin.write(json.dumps(request).encode() + b"\n")
        self.pid = int(self._answers.readline())

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.wait()  # or the next command would read this one's status

    def kill(self) -> None:
        """Kill this process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Return the status, negative after a signal, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the status once it has ended."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("radio", timeout or 0)
            self.returncode = int(self._answers.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)


@contextlib.contextmanager
def forks(module: str, *imported: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Run the process that forks, for one `Command` after the other.

    Args:
        module: Its function `main` takes the words of a command and returns the status.
        imported: More modules, which that one imports later.
    """
    from tiny_distillation import environment  # not in the process that forks

    pipe = subprocess.PIPE
    words = [sys.executable, __file__, module, *imported]
    # Without a buffer: `select` would not see a status that was read with the number of the process.
    with subprocess.Popen(words, bufsize=0, env=environment(), stdin=pipe, stdout=pipe) as server:
        yield server
        server.kill()


def serve(module: ModuleType) -> None:
    """Fork for each request, a line of JSON; answer with the number of the process, and with its status at its end."""
    gc.freeze()  # or each child's garbage collection would copy the memory that it shares
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.exit(_become_command(module, **json.loads(line)))
        os.write(1, b"%d\n" % child)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become_command(module: ModuleType, words: list[str], folder: str, said: str, constants: dict[str, float]) -> int:
    vars(module).update(constants)
    os.setsid()
    os.chdir(folder)
    os.environ["RADIO_CACHE"] = os.path.join(folder, "packages")
    output = os.open(said, os.O_WRONLY | os.O_CREAT)
    for descriptor, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(opened, descriptor)
    return module.main(words)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells let background processes ignore
    first, *_ = [importlib.import_module(name) for name in sys.argv[1:]]
    serve(first)
