import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Use one thread in all tests of this folder."""
