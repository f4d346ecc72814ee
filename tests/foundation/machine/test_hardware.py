import platform

import torch

from core import machine as machine
from core.machine import describe_machine, gpu_names, num_processors, processor_name, versions_of


def test_processor_and_cores_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert describe_machine() == f"{processor_name()}, {num_processors()} cores"
    assert processor_name()
    assert num_processors() >= 1


def test_gpus_are_named_and_equal_ones_counted(monkeypatch):
    names = ["NVIDIA H100", "NVIDIA H100", "NVIDIA A10"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    assert gpu_names() == ["2 x NVIDIA H100", "1 x NVIDIA A10"]
    assert describe_machine().endswith(" cores; 2 x NVIDIA H100; 1 x NVIDIA A10")


def test_a_machine_without_cpuinfo_has_a_name_too(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "absent")
    assert processor_name() == (platform.processor() or platform.machine())


def test_versions_of_what_is_installed():
    versions = versions_of(("torch", "nobodys-package"))
    assert versions.keys() == {"python", "torch"}
    assert torch.__version__.startswith(versions["torch"])  # some builds leave out "+cu124" in their metadata
