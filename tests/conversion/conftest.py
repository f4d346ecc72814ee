"""The reference cases in both of NVIDIA's formats."""

import pytest
from reference_cases import edited, hub_folder, reference, training_file


__all__ = ["edited", "hub_folder", "reference", "training_file"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Use one thread in all tests of this folder."""
