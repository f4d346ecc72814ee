"""A tiny checkpoint and an adapter for it, each with a complete card, and a Hub to publish them on."""

import shutil

import pytest
from huggingface_hub import HfApi
from local_hub import TOKEN, hub_in_place
from tiny_tuning import save_model_and_adapter


@pytest.fixture(scope="session")
def made_folders(tmp_path_factory):
    """A checkpoint and an adapter; not to be changed."""
    return save_model_and_adapter(tmp_path_factory.mktemp("publishing"))


@pytest.fixture
def model_folder(made_folders, tmp_path):
    """A copy of the checkpoint that a test may spoil."""
    return shutil.copytree(made_folders[0], tmp_path / "model")


@pytest.fixture
def adapter_folder(made_folders, tmp_path):
    """A copy of the adapter that a test may spoil."""
    return shutil.copytree(made_folders[1], tmp_path / "adapter")


@pytest.fixture
def hub(monkeypatch):
    """A fresh local Hub in place of Hugging Face's."""
    with hub_in_place(monkeypatch) as server:
        yield server


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=TOKEN)
