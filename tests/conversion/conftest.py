"""The reference cases in both of NVIDIA's formats."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference_cases import REFERENCE, load_training_file, write_hub_folder


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Use one thread in all tests of this folder."""


@pytest.fixture
def reference() -> Path:
    return REFERENCE


@pytest.fixture
def training_file() -> Callable[[str], dict]:
    """What a case's training file holds."""
    return load_training_file


@pytest.fixture
def edited(tmp_path) -> Callable[[str, Callable[[dict], None]], Path]:
    """Write a case's training file with changed contents."""

    def write(case: str, edit: Callable[[dict], None]) -> Path:
        content = load_training_file(case)
        edit(content)
        torch.save(content, tmp_path / "edited.pth.tar")
        return tmp_path / "edited.pth.tar"

    return write


@pytest.fixture
def hub_folder(tmp_path) -> Callable[[str], Path]:
    """Write a case's Hub folder: its `config.json`, and the training file's weights under the Hub's keys."""
    return lambda case: write_hub_folder(case, tmp_path / "hub")
