"""How much memory this process holds."""

import resource
import sys
from pathlib import Path


STATUS = Path("/proc/self/status")


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process had, in megabytes.

    On Linux by `/proc`: `getrusage` there also counts that of the process which started this one.
    """
    if STATUS.is_file():
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
