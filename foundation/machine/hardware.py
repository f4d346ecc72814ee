"""What a command runs on, in words: processor, cores, GPUs, versions of packages."""

import contextlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe_machine() -> str:
    """Return processor, cores and GPUs, such as "AMD EPYC, 2 cores; 8 x NVIDIA H100 80GB HBM3"."""
    return "; ".join([f"{processor_name()}, {num_processors()} cores", *gpu_names()])


def processor_name() -> str:
    """Return the processor's name; `platform.processor` is empty or only "x86_64" on most Linux systems."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_processors() -> int:
    """Return how many processors this process may use, which in a container is fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1


def gpu_names() -> list[str]:
    """Return the GPUs that this process sees, equal ones counted."""
    import torch  # which takes seconds

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
