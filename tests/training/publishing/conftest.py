"""A tiny checkpoint and an adapter for it, each with a complete card, and a Hub to publish them on."""

import shutil

import pytest
import torch
from huggingface_hub import HfApi
from local_hub import TOKEN, hub_in_place
from tiny_tuning import tuning_settings

from model_cards.build import write_card
from model_cards.licenses import License
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.image_processing_radio import RadioImageProcessor
from training.finetuning.adapters import add_adapter, save_adapter


@pytest.fixture(scope="session")
def made_folders(tmp_path_factory):
    """A checkpoint and an adapter; not to be changed."""
    model, adapter = (tmp_path_factory.mktemp("publishing") / name for name in ("model", "adapter"))
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=1)
    torch.manual_seed(0)
    RadioModel(config).save_pretrained(model)
    processor = RadioImageProcessor.from_model_config(config)
    processor.save_pretrained(model)
    tuned = add_adapter(RadioModel.from_pretrained(model), tuning_settings(checkpoint=str(model), tune="lora"))
    save_adapter(tuned, processor, adapter, str(model))
    for folder in (model, adapter):
        write_card(folder, license=License("apache-2.0"))
    return model, adapter


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
