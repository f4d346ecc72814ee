import mmap
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from modeling_radio.core import machine
from modeling_radio.core.machine import STATUS, EnergyMeter, find_device, peak_memory_mb


class NVMLError(Exception):
    pass


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Two visible GPUs and one that cannot count, by UUID with their millijoules; no counter of processors."""
    counted = {"GPU-a": 1_000_000, "GPU-b": 5_000_000, "GPU-c": None}

    def total(handle):
        if counted[handle] is None:
            raise NVMLError
        return counted[handle]

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=list(counted).__getitem__,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(machine, "POWERCAP", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return counted


@pytest.fixture
def package(gpus, monkeypatch, tmp_path):
    """Function that sets a processor's counter, in joules, beside that of one of its parts; no GPU counts."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def count(joules, zone="intel-rapl:0", name="package-0"):
        (tmp_path / zone).mkdir(exist_ok=True)
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("2000000000000\n")
        (tmp_path / zone / "energy_uj").write_text(f"{int(joules * 1e6)}\n")

    count(500, "intel-rapl:0:0", "core")
    return count


@pytest.mark.parametrize(
    ("visible", "kwh"),
    [(None, 1.5), ("1", 0.5), ("GPU-a", 1.0), ("0,GPU-b", 1.5), ("", None), ("MIG-x", None), ("GPU-c", None)],
)
def test_visible_gpus_count_from_the_beginning_on(gpus, monkeypatch, visible, kwh):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = EnergyMeter()
    gpus["GPU-a"] += 3_600_000_000
    gpus["GPU-b"] += 1_800_000_000
    assert meter.kwh() == ({} if kwh is None else {"GPUs": pytest.approx(kwh)})


def test_processors_count_whole_and_may_begin_anew_once(package, monkeypatch):
    package(1000.0)
    meter = EnergyMeter()
    package(1360.0)
    assert meter.kwh() == {"processors": pytest.approx(1e-4)}
    package(100.0)
    assert meter.kwh() == {"processors": pytest.approx((2_000_000 - 900) / 3.6e6)}
    later = time.monotonic() + 2001
    monkeypatch.setattr(machine.time, "monotonic", lambda: later)
    assert meter.kwh() == {}  # it may have begun anew twice


def test_a_counter_that_only_root_may_read_is_none(package, tmp_path):
    package(1.0)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert EnergyMeter().kwh() == {}


@pytest.mark.skipif(not STATUS.is_file(), reason="needs /proc")
def test_memory_is_the_largest_that_the_process_had():
    before = peak_memory_mb()
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:")]
    free_mb = before - int(line.split()[1]) * 1024 / 1e6
    with mmap.mmap(-1, int((free_mb + 100) * 1e6)) as held:  # pages of its own: freed ones are not used again
        pages = np.frombuffer(held, np.uint8)
        pages[:: mmap.PAGESIZE] = 1
        del pages
    assert peak_memory_mb() - before == pytest.approx(100, abs=30)


def test_devices_are_found_by_name_and_others_are_refused(monkeypatch):
    monkeypatch.setattr(machine, "devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    assert [find_device(name) for name in (None, "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    for name in ("cuda:2", "mps", "gpu", ""):
        with pytest.raises(ValueError, match="`device`"):
            find_device(name)
