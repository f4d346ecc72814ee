"""Early ends of a run: a request by Ctrl-C or a signal, answered between two steps, or divergence.

A phase with nothing to save leaves signals alone, which then end it at once: a Python handler would wait for native
code. `docs/how-to/resume.md` has the table of phases, signals and exit statuses.
"""

import atexit
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from multiprocessing.util import Finalize
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar


T = TypeVar("T")

logger = logging.getLogger(__name__)

LAUNCHER_PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Variable of PyTorch's launcher (and of `accelerate launch`): seconds between a signal passed on and SIGKILL."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """The run stopped because it was asked to; the message says how to go on.

    Attributes:
        number: The signal, which decides the exit status.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.number = number


class Signaled(KeyboardInterrupt):
    """Another signal than Ctrl-C's, also a `KeyboardInterrupt`: libraries catch every `Exception`.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class OutOfTime(Interrupted):
    """The run stopped because its time limit was reached; the message says how to go on."""


class TrainingDivergedError(ArithmeticError):
    """Losses, gradients or weights are not finite any more; the message says which and when."""


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGUSR1 only set `is_set`; a second SIGINT interrupts at once.

    SIGTERM and SIGUSR1 (from batch systems, shortly before the time is over) may come repeatedly: a process under a
    launcher gets one from the launcher and one from the batch system. A signal that the run has not answered is sent
    again at the end.

    Outside of the main thread, where Python allows no signal handlers, it does nothing. A time limit sets it too.

    Attributes:
        number: The first signal; None before.
        deadline: Second of `time.monotonic` from which it is set without a signal; None for no limit.
    """

    SIGNALS = tuple(each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGUSR1"))

    def __init__(self, deadline: float | None = None) -> None:
        self.number: int | None = None
        self.deadline = deadline
        self._previous: dict[int, Callable | int | None] = {}

    @property
    def is_asked(self) -> bool:
        """True if there was a signal."""
        return self.number is not None

    def interrupted(self, message: str) -> Interrupted:
        """Return the exception to raise; on a rank without a signal of its own as after SIGTERM."""
        return Interrupted(message, signal.SIGTERM if self.number is None else self.number)

    @property
    def is_set(self) -> bool:
        """True if the run shall stop: there was a signal, or the time is over."""
        return self.is_asked or (self.deadline is not None and time.monotonic() >= self.deadline)

    def __enter__(self) -> "StopRequest":
        try:
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        except ValueError:
            self._previous = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.number is not None and kind is None:
            signal.raise_signal(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])


def warn_of_launcher_timeout() -> None:
    """Warn that a launcher may kill this process before its checkpoint is written, if the environment sets no limit.

    The launcher's own `--shutdown-timeout` is not visible here.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and LAUNCHER_PATIENCE not in os.environ:
        logger.warning(
            "the launcher kills this run 30 seconds after SIGTERM or Ctrl-C, even if its checkpoint is not complete. "
            "Give it more seconds by %s or `torchrun --shutdown-timeout`. `--max-minutes` ends a run without a signal",
            LAUNCHER_PATIENCE,
        )


def ignore_stop_signals(worker: int = 0) -> None:
    """Keep a data worker alive until its parent has finished the step (`worker_init_fn` of a DataLoader).

    Only for workers within a `StopRequest`: others end by the same signals as their parent.
    """
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    if sys.platform != "win32":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise that a worker was killed
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


# At exit multiprocessing sends daemons SIGTERM and waits for them: for ever, for daemons that ignore it.
Finalize(None, _kill_workers, exitpriority=0)

# Otherwise the interpreter spends seconds on a last search for garbage among the objects of torch and transformers.
atexit.register(gc.freeze)


UNWINDING_SECONDS = 8.0
"""Our choice, out of the ten seconds in which a command ends."""

_is_bounded = False
_limits: list[threading.Timer] = []
"""Timers that end the process after `UNWINDING_SECONDS`; the first signal that is raised in a command starts one."""


@contextmanager
def ends_in_time() -> Iterator[None]:
    """End the process soon after a raised signal, even if it waits for threads, such as those of a download."""
    global _is_bounded
    before, _is_bounded = _is_bounded, True
    try:
        with _handling({signal.SIGINT}, signal.default_int_handler):
            yield
    finally:
        _is_bounded = before
        while _limits:
            _limits.pop().cancel()


@contextmanager
def raised_signals() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 raise `Signaled` as Ctrl-C raises `KeyboardInterrupt`.

    For waits for another program, which would go on without this process: the caller ends it.
    """
    with _handling(set(StopRequest.SIGNALS) - {signal.SIGINT}, signal.SIG_DFL):
        yield


@contextmanager
def _handling(numbers: set[signal.Signals], usual: Callable | int) -> Iterator[None]:
    """Let those signals raise that have their usual handlers; outside of the main thread do nothing."""
    is_main = threading.current_thread() is threading.main_thread()
    changed = {number for number in numbers if is_main and signal.getsignal(number) == usual}
    for number in changed:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, usual)


def limit_unwinding(number: int) -> None:
    """Start the timer that ends the process after a signal; only within `ends_in_time`, and once."""
    if _is_bounded and not _limits:
        limit = threading.Timer(UNWINDING_SECONDS, os._exit, [128 + number])
        limit.daemon = True
        _limits.append(limit)
        limit.start()


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    limit_unwinding(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Signaled(number)


_stop: Event | None = None
"""Event of a pool's process, set once all shall stop."""


def prepare_stoppable(stop: Event, prepare: Callable[..., None], *arguments: Any) -> None:
    """Initialize a process of a pool so that SIGTERM interrupts its function, and never ends it while it is idle.

    An idle process holds a lock that the others need: if it died, they would wait for ever. SIGUSR1 is left to the
    process that owns the pool, and to functions with a `StopRequest` of their own.

    Args:
        stop: Event that is set before the signal is sent, so that no further function begins.
        prepare: Further set-up.
        arguments: Arguments of `prepare`.
    """
    global _stop
    _stop = stop
    for number in set(StopRequest.SIGNALS) - {signal.SIGINT}:
        signal.signal(number, signal.SIG_IGN)
    prepare(*arguments)


def run_stoppable(run: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a process of a pool that `prepare_stoppable` set up; SIGTERM interrupts it at once.

    Within a `StopRequest` of its own the function finishes its step first.

    Raises:
        Interrupted: On a request to stop.
    """
    assert _stop is not None  # `prepare_stoppable` came first
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if _stop.is_set():
            _interrupt()
        return run(*arguments)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _interrupt(number: int = signal.SIGTERM, frame: FrameType | None = None) -> NoReturn:
    raise Interrupted("Stopped: the same command goes on.", number)
