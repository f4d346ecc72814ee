"""Settings for every test: no network, and remote code cached away from the user's own cache."""

import os
import tempfile

import pytest


# Both are read when transformers is imported, so they are set before any test module is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="radio-test-modules-")

import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Give every test the same random numbers whichever tests ran before it."""
    torch.manual_seed(0)
