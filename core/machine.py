"""The machine that a command runs on: processor, memory, threads, energy."""

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from modeling_radio.checks_radio import check_choice


def sharing_threads(num_at_once: int, name: str) -> ThreadPoolExecutor:
    """Return a pool whose calls run at the same time on a CPU, each with its share of torch's threads.

    Most operations of a small network are too small to be worth dividing among cores: calls with a core each are faster
    than one call after the other with all of them, the more where threads do not spin while they wait
    (`OMP_WAIT_POLICY=passive`).

    Args:
        num_at_once: Calls that run at the same time.
        name: Name of the threads, as a debugger shows it.
    """
    num_threads = max(1, torch.get_num_threads() // num_at_once)
    return ThreadPoolExecutor(num_at_once, name, lambda: torch.set_num_threads(num_threads))


STATUS = Path("/proc/self/status")


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process had, in megabytes.

    On Linux by `/proc`: `getrusage` there also counts that of the process which started this one. Not on Windows.
    """
    if STATUS.is_file():
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def describe_machine() -> str:
    """Return processor, cores and GPUs, such as "AMD EPYC, 2 cores; 8 x NVIDIA H100 80GB HBM3"."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gpus = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return "; ".join([f"{processor_name()}, {num_processors()} cores", *gpus])


def processor_name() -> str:
    """Return the processor's name; `platform.processor` is empty or only "x86_64" on most Linux systems."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def num_processors() -> int:
    """Return the number of processors that this process may use; in a container these are not all."""
    return len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count() or 1


def devices() -> list[str]:
    """Return torch's devices of this machine; the first one is the default."""
    if torch.cuda.is_available():
        return [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu"]
    return ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]


def find_device(name: str | None, *, error: type[ValueError] = ValueError) -> str:
    """Return the device that a user names: one of `devices`, or "cuda" for the first GPU; the default for None.

    Args:
        name: The name.
        error: Error for one that cannot be used.

    Raises:
        ValueError: If this machine has no such device, or torch cannot use it.
    """
    found = devices()
    if name is None:
        return found[0]
    first = next((device for device in found if device.partition(":")[0] == name), name)
    check_choice("device", first, found, error=error)
    return first


def arithmetic() -> dict[str, Any]:
    """Return the facts that decide how a CPU rounds: results are equal bit for bit only if all of these are equal."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


JOULES_PER_KWH = 3.6e6
POWERCAP = Path("/sys/class/powercap")
"""Folder of the processors' energy counters on Linux (RAPL, of AMD's too); most systems let only root read them."""
_LARGEST_PACKAGE_WATTS = 1000.0  # our choice, above any processor of today: bounds how soon a counter begins anew twice


class EnergyMeter:
    """Energy that GPUs and processors have used since it was made."""

    def __init__(self) -> None:
        self._counters = [*_gpu_counters(), *_processor_counters()]
        self._first = [read() for _, read, _ in self._counters]
        self._began = time.monotonic()

    def kwh(self) -> dict[str, float]:
        """Return the energy so far by "GPUs" and "processors", in kWh; without a kind that has no counter."""
        seconds, found = time.monotonic() - self._began, {}
        for (kind, read, span), first in zip(self._counters, self._first, strict=True):
            if span is not None and seconds * _LARGEST_PACKAGE_WATTS > span:
                return {kind: value for kind, value in found.items() if kind != "processors"}
            joules = read() - first
            joules += span if span is not None and joules < 0 else 0.0  # it began anew, once
            found[kind] = found.get(kind, 0.0) + joules / JOULES_PER_KWH
        return found


Counter = tuple[str, Callable[[], float], float | None]
"""Kind, function that reads it in joules, and joules at which it begins anew; None for never."""


def _gpu_counters() -> Iterator[Counter]:
    """Yield a counter for each GPU of NVIDIA's that this process may use; they count since the driver was loaded."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return
    with contextlib.suppress(pynvml.NVMLError):  # no driver, or a GPU from before Volta
        pynvml.nvmlInit()
        for handle in _visible_gpus(pynvml):
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            yield "GPUs", lambda handle=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, None


def _visible_gpus(pynvml) -> list:
    """Return handles of the GPUs that `CUDA_VISIBLE_DEVICES` leaves, by number or by UUID."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = range(pynvml.nvmlDeviceGetCount()) if named is None else [each.strip() for each in named.split(",") if each]
    return [
        pynvml.nvmlDeviceGetHandleByIndex(int(name))
        if str(name).isdecimal()
        else pynvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
        if str(name).isdecimal() or str(name).startswith("GPU-")  # slices of a GPU have no counter
    ]


def _processor_counters() -> Iterator[Counter]:
    """Yield a counter for each processor of the machine, whose other work counts too."""
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        with contextlib.suppress(OSError, ValueError):
            if not (zone / "name").read_text().startswith("package"):
                continue  # a part of one
            span = int((zone / "max_energy_range_uj").read_text()) / 1e6
            file = zone / "energy_uj"
            int(file.read_text())
            yield "processors", lambda file=file: int(file.read_text()) / 1e6, span
