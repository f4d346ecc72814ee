"""A repository as NVIDIA's are, with a stand-in of ours for its code, and quick processes."""

import subprocess
from pathlib import Path

import pytest
from reference_cases import write_release


CASE = "c_radio_v4_tiny"


@pytest.fixture(scope="session")
def release(tmp_path_factory) -> Path:
    return write_release(CASE, tmp_path_factory.mktemp("release") / "C-RADIOv4-H")


@pytest.fixture
def quick_processes(elsewhere, monkeypatch):
    """Fork the processes that a test starts: as fresh as new ones, and without this repository."""
    monkeypatch.setattr(subprocess, "run", elsewhere.run_command)
