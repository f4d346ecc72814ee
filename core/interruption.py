"""Why a run ends early: a request by Ctrl-C or a signal, answered between two steps, or divergence.

A phase with nothing to save leaves signals alone: they end it at once, where a handler of Python's would wait for
native code. `docs/guides/train/distil.md` has the table of phases, signals and exit statuses.
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


Result = TypeVar("Result")

logger = logging.getLogger(__name__)

LAUNCHER_PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Read by PyTorch's launcher, and so by `accelerate launch`: seconds from a signal that it passes on to SIGKILL."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """The run stopped because it was asked to; the message says how to go on.

    Attributes:
        number: The signal that asked, of which the exit status is made.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.number = number


class Signaled(KeyboardInterrupt):
    """Another signal than Ctrl-C's, raised as that one is: libraries catch every `Exception`.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class OutOfTime(Interrupted):
    """The run stopped because the time is over that it was given; the message says how to go on."""


class TrainingDivergedError(ArithmeticError):
    """Losses, gradients or weights are not finite any more; the message says which and when."""


class StopRequest:
    """While entered, SIGINT, SIGTERM and SIGUSR1 only set `is_set`; a second SIGINT interrupts at once.

    Of SIGTERM, and SIGUSR1, which batch systems send when the time is nearly over, any number may come: to a process
    that a launcher has started both the launcher and the batch system send one. A signal that came too late to be
    answered within it is sent again at its end.

    Outside of the main thread, where Python allows no signal handlers, it does nothing. A time limit sets it too.

    Attributes:
        number: Of the first signal that has come; None before.
        deadline: Second of `time.monotonic` from which it is set without a signal; None for no limit.
    """

    SIGNALS = tuple(each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGUSR1"))

    def __init__(self, deadline: float | None = None) -> None:
        self.number: int | None = None
        self.deadline = deadline
        self._previous: dict[int, Callable | int | None] = {}

    @property
    def is_asked(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    def interrupted(self, message: str) -> Interrupted:
        """Return what to raise; on a rank that no signal reached, where another's did, as after SIGTERM."""
        return Interrupted(message, signal.SIGTERM if self.number is None else self.number)

    @property
    def is_set(self) -> bool:
        """Whether to stop: a signal has come, or the time is over."""
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


def warn_of_impatient_launcher() -> None:
    """Say that a launcher may kill this process before its checkpoint is written, where the environment says no limit.

    Whether the launcher has been given `--shutdown-timeout` cannot be seen from here.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and LAUNCHER_PATIENCE not in os.environ:
        logger.warning(
            "after SIGTERM or Ctrl-C the launcher kills this run 30 seconds later, whether or not its checkpoint is "
            "complete, unless it was told otherwise: by %s or `torchrun --shutdown-timeout`, the seconds that one may "
            "take. `--max-minutes` ends a run without a signal",
            LAUNCHER_PATIENCE,
        )


def ignore_stop_signals(worker: int = 0) -> None:
    """Let a data worker live on until its parent has finished the step (`worker_init_fn` of a DataLoader).

    Only for what a `StopRequest` outlives: elsewhere workers end by the same signals as their parent.
    """
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    if sys.platform != "win32":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise that a worker was killed
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


# At its exit multiprocessing sends daemons a SIGTERM and waits for them: for ever, for those that ignore it.
Finalize(None, _kill_workers, exitpriority=0)

# Else the interpreter looks for garbage in all that torch and transformers have made before it ends, for seconds.
atexit.register(gc.freeze)


UNWINDING_SECONDS = 8.0
"""Our choice: of the ten seconds in which a command ends."""

_is_bounded = False
_limits: list[threading.Timer] = []
"""Timers that end the process after `UNWINDING_SECONDS`; the first signal that is raised in a command starts one."""


@contextmanager
def ends_in_time() -> Iterator[None]:
    """Within it a signal that is raised ends the process even where that waits for threads, such as a download's."""
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

    Around the wait for another program, which would go on without us: whoever waits ends it.
    """
    with _handling(set(StopRequest.SIGNALS) - {signal.SIGINT}, signal.SIG_DFL):
        yield


@contextmanager
def _handling(numbers: set[signal.Signals], usual: Callable | int) -> Iterator[None]:
    """Let signals raise that have their usual handlers; outside of the main thread it does nothing."""
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
    """Let the process end soon after a signal, whatever it waits for; in `ends_in_time`, and once."""
    if _is_bounded and not _limits:
        limit = threading.Timer(UNWINDING_SECONDS, os._exit, [128 + number])
        limit.daemon = True
        _limits.append(limit)
        limit.start()


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    limit_unwinding(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Signaled(number)


_stop: Event | None = None
"""Of a process of a pool: set once all shall stop."""


def prepare_stoppable(stop: Event, prepare: Callable[..., None], *arguments: Any) -> None:
    """Set a process of a pool up (its `initializer`), so that SIGTERM reaches what it runs, and ends it never idle.

    An idle process waits with a lock in its hands that the others need: if it died, they would wait for ever. SIGUSR1
    is left to the process that has the pool, and to what runs within a `StopRequest` of its own.

    Args:
        stop: Set before the signal is sent: what is about to begin must not.
        prepare: What else there is to set up.
        arguments: Of it.
    """
    global _stop
    _stop = stop
    for number in set(StopRequest.SIGNALS) - {signal.SIGINT}:
        signal.signal(number, signal.SIG_IGN)
    prepare(*arguments)


def run_stoppable(run: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in a process of a pool that `prepare_stoppable` set up; SIGTERM interrupts it at once.

    Within a `StopRequest` of its own it goes on to the end of what must not be left half done.

    Raises:
        Interrupted: If it was asked to stop.
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
