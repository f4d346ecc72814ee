"""How long things take: the phases of a command, and the fastest of several runs."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar


Name = TypeVar("Name", bound=Hashable)


@dataclass
class Clock:
    """Reports one line per phase and remembers how long each took, in seconds.

    Attributes:
        report: Called with the line.
        seconds: By phase.
    """

    report: Callable[[str], object] = lambda line: print(line, flush=True)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside; the same phase may be entered again."""
        started = time.perf_counter()
        yield
        took = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        self.report(f"{name:<16} {took:6.1f} s")


def fastest_seconds(
    calls: Mapping[Name, Callable[[], object]], *, min_rounds: int, budget_seconds: float = 0.0
) -> dict[Name, float]:
    """Return how long the fastest run of each call took on the CPU, in seconds.

    The calls take turns, so that all meet the same disturbances. A round before, which sets kernels up, does not count.

    Args:
        calls: What to time, by name.
        min_rounds: Runs of each call, at least.
        budget_seconds: Go on with further rounds for so long.
    """
    for call in calls.values():
        call()
    fastest = dict.fromkeys(calls, float("inf"))
    started, rounds = time.perf_counter(), 0
    while rounds < min_rounds or time.perf_counter() - started < budget_seconds:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            fastest[name] = min(fastest[name], time.perf_counter() - begin)
        rounds += 1
    return fastest
