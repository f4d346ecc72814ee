"""Durations: phases of a command and the record of its run, its bar with the time left, the fastest of several runs."""

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeVar

from tqdm.auto import tqdm

from modeling_radio.core.machine import EnergyMeter, describe_machine, versions_of


Name = TypeVar("Name", bound=Hashable)


@dataclass
class Clock:
    """Reports one line per phase and remembers how long each took, in seconds, and the energy of all.

    Attributes:
        report: Called with the line.
        seconds: By phase.
        energy: Energy since the clock was made.
    """

    report: Callable[[str], object] = lambda line: print(line, flush=True)
    seconds: dict[str, float] = field(default_factory=dict)
    energy: EnergyMeter = field(default_factory=EnergyMeter)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; it may be entered again."""
        started = time.perf_counter()
        yield
        took = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        self.report(f"{name:<16} {took:6.1f} s")


VERSIONED = ("torch", "torchvision", "transformers", "timm", "accelerate", "datasets", "scikit-learn")


def describe_run(command: str, clock: Clock) -> dict[str, Any]:
    """Return the facts to repeat a run: command, date, machine, versions, seconds, and energy if counted."""
    run = {
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": describe_machine(),
        "versions": versions_of(VERSIONED),
        "seconds": {name: round(value, 1) for name, value in clock.seconds.items()},
    }
    energy = clock.energy.kwh()
    if energy:
        run |= {"energy_kwh": float(f"{sum(energy.values()):.3g}"), "energy_of": " and ".join(energy)}
    return run


class Phase(NamedTuple):
    """A part of a command.

    Attributes:
        name: Its name in records; a `ProgressBar` of that name reports its progress.
        seconds: The time that it takes on some machine.
        title: Says in words what happens.
        tells_speed: Whether its time tells how fast this machine is; that of a download does not.
    """

    name: str
    seconds: float
    title: str
    tells_speed: bool = True


class WholeRun(Clock):
    """A clock with one bar for all phases of a command, in place of a bar for each; it counts the whole time down.

    The speed of the machine is estimated from the phases so far, that of a phase from itself once it reports progress.

    Args:
        phases: In order; a name may come again. One that neither begins nor reports is skipped.
        is_shown: Whether to show the bar; None shows it on a terminal only.
    """

    TELLING_SHARE = 0.05
    """Share of a phase after which its time counts as the machine's speed. Our choice: the first steps are slower."""

    REFRESH_SECONDS = 0.1
    """As tqdm."""

    CORRECTION_SECONDS = 10.0
    """Time constant with which the shown time follows a new estimate, so that it does not jump; our choice."""

    def __init__(self, phases: Sequence[Phase], *, is_shown: bool | None = None) -> None:
        super().__init__(report=lambda line: None)
        self.phases, self.share_done = phases, 0.0
        self._telling: dict[int, tuple[float, float]] = {}  # seconds that telling phases took, and expected ones
        self._began = self._phase_began = self._reported = self._counted = time.perf_counter()
        self._index, self._share, self._first_share, self._refreshed = -1, 1.0, 1.0, 0.0  # before the first
        self._shown_left = self.seconds_left
        self._ended, self._ticker = threading.Event(), threading.Thread(target=self._tick, daemon=True)
        self.bar = tqdm(
            total=1.0,
            bar_format="{desc} {percentage:3.0f} %|{bar}| {elapsed}{postfix}",
            dynamic_ncols=True,
            disable=None if is_shown is None else not is_shown,
        )
        if is_shown is None and self.bar.disable:  # a log file: a line for each phase
            self.report = Clock().report

    def __enter__(self) -> "WholeRun":
        self._token = _WHOLE_RUN.set(self)
        if not self.bar.disable:
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._ticker.is_alive():
            self._ticker.join()
        _WHOLE_RUN.reset(self._token)
        self.bar.close()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; it may be entered again."""
        self.show(name, 0.0)
        with super().phase(name):
            yield
        self.show(name, 1.0)

    @property
    def slowness(self) -> float:
        """Time on this machine over that expected, from the phases that tell it so far."""
        took, expected = (sum(each) for each in zip((0.0, 0.0), *self._telling.values(), strict=True))
        return took / expected if expected else 1.0

    @property
    def seconds_left(self) -> float:
        """Estimated time left at the speed of this machine."""
        took, expected = self._telling.get(self._index, (0.0, 0.0))
        own = took / expected if expected else self.slowness
        of_this = self.phases[self._index].seconds * (1 - self._share) * own - (time.perf_counter() - self._reported)
        return max(of_this, 0.0) + sum(phase.seconds for phase in self.phases[self._index + 1 :]) * self.slowness

    def show(self, name: str, share: float) -> None:
        """Show the share of a phase that is done, from 0 to 1; for other names only the time is updated."""
        now = time.perf_counter()
        if any(name == phase.name for phase in self.phases):
            self._move_to(name, share, now)
        if now - self._refreshed >= self.REFRESH_SECONDS or share >= 1:
            self._refresh(now)

    def _move_to(self, name: str, share: float, now: float) -> None:
        if self._index < 0 or name != self.phases[self._index].name or share < self._share:
            indices = [index for index, phase in enumerate(self.phases) if phase.name == name]
            self._index = next((index for index in indices if index > self._index), indices[-1])
            self._phase_began, self._first_share = now, share
        self._share, self._reported = share, now
        phase, done = self.phases[self._index], share - self._first_share
        if phase.tells_speed and done >= self.TELLING_SHARE:
            self._telling[self._index] = (now - self._phase_began, done * phase.seconds)

    def _refresh(self, now: float) -> None:
        since = now - self._counted
        counted_down = max(self._shown_left - since, 0.0)
        weight = 1 - math.exp(-since / self.CORRECTION_SECONDS)
        self._shown_left, self._counted = counted_down + (self.seconds_left - counted_down) * weight, now
        self._refreshed, elapsed = now, now - self._began
        self.share_done = self.bar.n = elapsed / max(elapsed + self._shown_left, 1e-9)
        place = f"{max(self._index, 0) + 1} of {len(self.phases)}"
        self.bar.set_description_str(f"{place}: {self.phases[max(self._index, 0)].title}", refresh=False)
        self.bar.set_postfix_str(f"about {tqdm.format_interval(round(self._shown_left))} left", refresh=False)
        self.bar.refresh()

    def _tick(self) -> None:
        """Count down also while nothing reports."""
        while not self._ended.wait(1.0):
            self._refresh(time.perf_counter())


_WHOLE_RUN: ContextVar[WholeRun | None] = ContextVar("whole_run", default=None)


class ProgressBar(tqdm):
    """Bar of one piece of work; inside a `WholeRun` it is silent and moves that run's bar instead."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        is_wanted = options.get("disable") is not True
        self.whole_run = _WHOLE_RUN.get() if is_wanted else None
        if self.whole_run is not None:
            options["disable"] = True
        super().__init__(*arguments, **options)
        self.desc = options.get("desc") or ""

    def __iter__(self) -> Iterator[Any]:
        if self.whole_run is None:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float | None = 1) -> bool | None:
        """Add the items done since the last call."""
        if self.whole_run is None:
            return super().update(n)
        self.n += n or 0
        if self.total:
            self.whole_run.show(self.desc, self.n / self.total)
        return None

    def say(self, text: str) -> None:
        """Print a line above the bar; inside a whole run nothing is printed."""
        if self.whole_run is None:
            self.write(text)


def fastest_seconds(calls: Mapping[Name, Callable[[], object]], *, num_rounds: int) -> dict[Name, float]:
    """Return the time of the fastest run of each call on the CPU, in seconds.

    The calls take turns, so that all meet the same disturbances. A first round, which sets up kernels, does not count.

    Args:
        calls: Functions to time, by name.
        num_rounds: Runs of each call.
    """
    for call in calls.values():
        call()
    fastest = dict.fromkeys(calls, float("inf"))
    for _ in range(num_rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            fastest[name] = min(fastest[name], time.perf_counter() - begin)
    return fastest
