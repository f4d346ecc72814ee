"""Energy that a command took, as far as the machine counts it: by its GPUs and by its processors. Nothing is guessed.

Packages that track emissions fill what no counter tells with the power that the maker names; that is no measurement.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path


JOULES_PER_KWH = 3.6e6
POWERCAP = Path("/sys/class/powercap")
"""Where Linux has the counters of processors (RAPL, of AMD's too); most systems let only root read them."""
_LARGEST_PACKAGE_WATTS = 1000.0  # our choice, above any processor of today: how soon its counter may begin anew twice


class EnergyMeter:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._counters = [*_gpu_counters(), *_processor_counters()]
        self._first = [read() for _, read, _ in self._counters]
        self._began = time.monotonic()

    def kwh(self) -> dict[str, float]:
        """Return the energy so far by "GPUs" and "processors", in kWh; without those that no counter tells."""
        seconds, found = time.monotonic() - self._began, {}
        for (kind, read, span), first in zip(self._counters, self._first, strict=True):
            if span is not None and seconds * _LARGEST_PACKAGE_WATTS > span:
                return {kind: value for kind, value in found.items() if kind != "processors"}
            joules = read() - first
            joules += span if span is not None and joules < 0 else 0.0  # it began anew, once
            found[kind] = found.get(kind, 0.0) + joules / JOULES_PER_KWH
        return found


Counter = tuple[str, Callable[[], float], float | None]
"""What it counts, how it is read, in joules, and at how many joules it begins anew; None for never."""


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
    """Yield a counter for each processor of the machine: what others run on them counts too."""
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
        with contextlib.suppress(OSError, ValueError):
            if not (zone / "name").read_text().startswith("package"):
                continue  # a part of one
            span = int((zone / "max_energy_range_uj").read_text()) / 1e6
            file = zone / "energy_uj"
            int(file.read_text())
            yield "processors", lambda file=file: int(file.read_text()) / 1e6, span
