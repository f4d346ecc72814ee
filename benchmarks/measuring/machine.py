"""What numbers depend on: date, processor, threads, versions."""

import os
import platform
import re
from datetime import date
from pathlib import Path

import torch

from foundation.machine.hardware import processor_name, versions_of


PACKAGES = ("torch", "torchvision", "transformers", "timm", "torchao")


def describe_machine(device: str = "cpu") -> dict[str, object]:
    """Return what the numbers of this run depend on.

    Args:
        device: Where it runs, "cpu" or "cuda".
    """
    machine: dict[str, object] = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        **versions_of(PACKAGES),
    }
    if device == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return machine


def file_name_of(machine: dict[str, object]) -> str:
    """Return date and what computed as a part of a file's name."""
    name = re.sub(r"[^a-z0-9]+", "-", str(machine.get("gpu", machine["processor"])).lower()).strip("-")
    return f"{machine['date']}_{name}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    flags = " with AMX" if info.is_file() and "amx_tile" in info.read_text() else ""
    name = f"{os.cpu_count()} x {processor_name()}{flags}"
    return name if platform.machine() == "x86_64" else f"{name} ({platform.machine()})"
