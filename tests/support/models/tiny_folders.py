"""Saved folders as readers of notebooks and scripts have them, with tiny random models, and pictures."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_sentences import build_sentence_tower
from tiny_texts import build_word_tokenizer

from modeling_radio import (
    RadioConfig,
    RadioForZeroShotImageClassification,
    RadioImageProcessor,
    RadioModel,
    RadioPreTrainedModel,
)


TEXT_WIDTH = 12
ADAPTORS = [
    {"name": "words", "summary_dim": TEXT_WIDTH, "feature_dim": TEXT_WIDTH, "hidden_size": 24},
    {"name": "dense", "summary_dim": None, "feature_dim": 20, "hidden_size": 24},
]
COLORS = {"red": (220, 30, 30), "blue": (30, 60, 220)}


def build_radio() -> RadioModel:
    """Return a backbone with an adaptor that has texts and one without a summary."""
    torch.manual_seed(0)
    return RadioModel(RadioConfig.from_preset("radio-test", adaptors=ADAPTORS, preferred_resolution=[64, 64])).eval()


def save_with_processor(model: RadioPreTrainedModel, folder: Path) -> Path:
    """Save a model and its processor, and return the folder."""
    model.save_pretrained(folder)
    RadioImageProcessor.from_model_config(model.config).save_pretrained(folder)
    return folder


def save_radio(folder: Path) -> Path:
    """Save that backbone with its processor."""
    return save_with_processor(build_radio(), folder)


def save_words(folder: Path) -> Path:
    """Save the same backbone with a text tower."""
    tower = build_sentence_tower(TEXT_WIDTH)
    save_with_processor(RadioForZeroShotImageClassification.from_parts(build_radio(), tower, "words"), folder)
    tokenizer = build_word_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


def save_images(folder: Path, num_each: int = 10) -> Path:
    """Save two classes of pictures, `red/` and `blue/`, that differ a little, beside a file that is no image."""
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(num_each):
            shade = tuple(min(255, part + 3 * number) for part in color)
            Image.new("RGB", (80 + number, 64), shade).save(folder / name / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the backbone."""
    return save_radio(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with texts."""
    return save_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes."""
    return save_images(tmp_path_factory.mktemp("pictures"))


def overflow(folder: Path) -> Path:
    """Make the outputs of a folder's model overflow, with weights that are finite, and return the folder."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith(("mlp.fc2.weight", "mlp.fc2.bias")):
            tensors[name] = torch.full_like(tensor, torch.finfo(tensor.dtype).max)
    save_file(tensors, path, metadata)
    return folder
