"""The command `distill` with one phase that takes a minute, and makes the file "begun" once it is there.

A process spends its time on imports. So one process imports all, and every command is a fork of it, with a session, a
folder and outputs of its own, which ends as an interpreter does. This file is both ends: the class that tests use and,
as a script, the process that forks.
"""

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_distillation import TinyTeacher, environment, install_tiny_world
from torch.utils.data._utils import worker

from modeling_radio.core import packages
from modeling_radio.demo.assets import fetch_at_once
from modeling_radio.training.distill import main
from modeling_radio.training.distillation import build, inputs, trainer


def wait(*arguments: Any, **options: Any) -> None:
    """Take a minute."""
    Path("begun").touch()
    time.sleep(60)


def fetch(*arguments: Any, **options: Any) -> None:
    """Fetch two packages by a program that takes a minute."""
    fetch_at_once(["scikit-image", "scikit-learn"])


def sleeping_client(*arguments: Any) -> list[str]:
    """Return the command of that program."""
    Path("begun").touch()
    return ["sleep", "60"]


def count_steps(set_rate: Callable) -> Callable:
    """Return what begins a step, which also tells of the third."""

    def begin_step(distiller: trainer.Distiller) -> None:
        if distiller.step == 2:
            Path("begun").touch()
        set_rate(distiller)

    return begin_step


def install(phase: str, patch: pytest.MonkeyPatch) -> None:
    """Let a phase take long, and data workers look for their parent every half second, not every five."""
    install_tiny_world(patch)
    patch.setattr(worker, "MP_STATUS_CHECK_INTERVAL", 0.5)
    if phase == "fetching":
        patch.setattr(packages, "_client_command", sleeping_client)
        patch.setattr(inputs, "load_teachers", fetch)
    elif phase == "building":
        patch.setattr(build, "build_student", wait)
    elif phase in ("calibrating", "caching"):
        patch.setattr(TinyTeacher, "encode", wait)
    elif phase == "training":
        patch.setattr(trainer.Distiller, "_set_learning_rate", count_steps(trainer.Distiller._set_learning_rate))
    else:
        patch.setattr(trainer, "export_student", wait)


class Command:
    """A command that runs, with the methods of `subprocess.Popen` that tests of signals need; its context kills it."""

    def __init__(
        self, server: "subprocess.Popen[bytes]", phase: str, words: list[str], folder: Path, said: str
    ) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self.returncode: int | None = None
        self._answers = server.stdout
        request = {"phase": phase, "words": words, "folder": str(folder), "said": said}
        server.stdin.write(json.dumps(request).encode() + b"\n")
        self.pid = int(self._answers.readline())

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()  # or the next command would read this one's status

    def poll(self) -> int | None:
        """Return the status, negative after a signal, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the status once it has ended."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("radio distill", timeout or 0)
            self.returncode = int(self._answers.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)


@contextlib.contextmanager
def forks() -> "Iterator[subprocess.Popen[bytes]]":
    """Run the process that forks, for one `Command` after the other."""
    pipe = subprocess.PIPE
    # Without a buffer: `select` would not see a status that was read with the number of the process.
    with subprocess.Popen([sys.executable, __file__], bufsize=0, env=environment(), stdin=pipe, stdout=pipe) as server:
        yield server
        server.kill()


def serve() -> None:
    """Fork for each request, a line of JSON; answer with the number of the process, and with its status at its end."""
    gc.freeze()  # or each child's garbage collection would copy the memory that it shares
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.exit(_become_command(**json.loads(line)))
        os.write(1, b"%d\n" % child)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become_command(phase: str, words: list[str], folder: str, said: str) -> int:
    os.setsid()
    os.chdir(folder)
    os.environ["RADIO_CACHE"] = os.path.join(folder, "packages")
    output = os.open(said, os.O_WRONLY | os.O_CREAT)
    for descriptor, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(opened, descriptor)
    install(phase, pytest.MonkeyPatch())
    return main(words)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells let background processes ignore
    serve()
