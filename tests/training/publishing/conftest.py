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
def made_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publishing") / "model"
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=1)
    torch.manual_seed(0)
    RadioModel(config).save_pretrained(folder)
    RadioImageProcessor.from_model_config(config).save_pretrained(folder)
    write_card(folder, license=License("apache-2.0"))
    return folder


@pytest.fixture(scope="session")
def made_adapter(made_model):
    folder = made_model.with_name("adapter")
    tuned = add_adapter(
        RadioModel.from_pretrained(made_model), tuning_settings(checkpoint=str(made_model), tune="lora")
    )
    processor = RadioImageProcessor.from_pretrained(made_model)
    save_adapter(tuned, processor, folder, str(made_model))
    write_card(folder, license=License("apache-2.0"))
    return folder


@pytest.fixture
def model_folder(made_model, tmp_path):
    """Return a copy of the checkpoint that a test may spoil."""
    return shutil.copytree(made_model, tmp_path / "model")


@pytest.fixture
def adapter_folder(made_adapter, tmp_path):
    """Return a copy of the adapter that a test may spoil."""
    return shutil.copytree(made_adapter, tmp_path / "adapter")


@pytest.fixture
def hub(monkeypatch):
    """Return a fresh Hub that this process asks in place of Hugging Face's."""
    with hub_in_place(monkeypatch) as server:
        yield server


@pytest.fixture
def api(hub):
    """Return the Hub's client."""
    return HfApi(endpoint=hub.endpoint, token=TOKEN)
