"""Stand-ins for runs of a study in processes side by side; the imports are fast."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType


_place = Path()


def prepare(source: str, seeds: list[int], output: Path, start_method: str, device: str | None) -> None:
    """Set a process up."""
    global _place
    _place = output
    output.mkdir(exist_ok=True)


def run(arm: str, seed: int) -> None:
    """Write a file; arms called "broken" and "killed" fail, one called "slow" goes on until it is stopped."""
    if arm == "broken":
        raise ValueError("It broke.")
    if arm == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if arm == "slow":
        signal.signal(signal.SIGTERM, stop)
        (_place / "started").write_text("")
        time.sleep(60)
    (_place / f"{arm}-{seed}").write_text("")


def linger(name: str) -> str:
    """Go on until a signal ends it."""
    (_place / f"{name}-started").write_text("")
    time.sleep(60)
    return name


def stop(number: int, frame: FrameType | None) -> None:
    """Note that the run was asked to stop, and end it."""
    (_place / "stopped").write_text("")
    sys.exit()
