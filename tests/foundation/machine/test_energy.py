import sys
import time
from types import SimpleNamespace

import pytest

from core import machine
from core.machine import EnergyMeter


class NVMLError(Exception):
    pass


@pytest.fixture(autouse=True)
def no_counters(monkeypatch, tmp_path):
    """Begin with a machine that counts nothing."""
    monkeypatch.setattr(machine, "POWERCAP", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Three GPUs by UUID, with millijoules since the driver was loaded."""
    counted = {"GPU-a": 1_000_000, "GPU-b": 5_000_000, "GPU-c": 0}

    def total(handle):
        if handle == "GPU-c":
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
    return counted


@pytest.fixture
def package(tmp_path):
    """Write a processor's counter, beside that of one of its parts; return a function that sets it, in joules."""

    def count(joules, zone="intel-rapl:0", name="package-0", span=2_000_000):
        folder = tmp_path / zone
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{int(span * 1e6)}\n")
        (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")

    count(500, "intel-rapl:0:0", "core")
    return count


def test_where_nothing_counts_nothing_is_said(gpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter().kwh() == {}


def test_gpus_are_counted_from_the_beginning_on(gpus):
    meter = EnergyMeter()
    gpus["GPU-a"] += 3_600_000_000
    gpus["GPU-b"] += 1_800_000_000
    assert meter.kwh() == {"GPUs": pytest.approx(1.5)}


@pytest.mark.parametrize(
    ("visible", "kwh"), [("1", 0.5), ("GPU-a", 1.0), ("0,GPU-b", 1.5), ("", None), ("MIG-x", None)]
)
def test_gpus_of_others_do_not_count(gpus, monkeypatch, visible, kwh):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = EnergyMeter()
    gpus["GPU-a"] += 3_600_000_000
    gpus["GPU-b"] += 1_800_000_000
    assert meter.kwh() == ({} if kwh is None else {"GPUs": pytest.approx(kwh)})


def test_a_gpu_that_does_not_count_is_left_out(gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c")
    assert EnergyMeter().kwh() == {}


def test_processors_count_whole_and_may_begin_anew_once(package):
    package(1000.0)
    meter = EnergyMeter()
    package(1360.0)
    assert meter.kwh() == {"processors": pytest.approx(1e-4)}
    package(100.0)
    assert meter.kwh() == {"processors": pytest.approx((2_000_000 - 900) / 3.6e6)}


def test_a_counter_that_may_have_begun_anew_twice_says_nothing(package, gpus, monkeypatch):
    package(1000.0)
    meter = EnergyMeter()
    now = time.monotonic()
    monkeypatch.setattr(machine.time, "monotonic", lambda: now + 2001)
    assert meter.kwh() == {"GPUs": 0}


def test_a_counter_that_only_root_may_read_is_none(package, tmp_path):
    package(1.0)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert EnergyMeter().kwh() == {}
