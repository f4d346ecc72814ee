"""What the scripts find: tiny random models, pictures of two classes, and a process that knows no more."""

from pathlib import Path

import pytest
import torch
from documentation import ROOT
from PIL import Image
from tiny_sentences import build_sentence_tower
from tiny_texts import build_word_tokenizer

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel


SCRIPTS = ROOT / "notebooks" / "scripts"
TEXT_WIDTH = 12
ADAPTORS = [
    {"name": "words", "summary_dim": TEXT_WIDTH, "feature_dim": TEXT_WIDTH, "hidden_size": 24},
    {"name": "dense", "summary_dim": None, "feature_dim": 20, "hidden_size": 24},
]
COLORS = {"red": (220, 30, 30), "blue": (30, 60, 220)}
NUM_PICTURES = 10
"""Of each color."""


@pytest.fixture(scope="session")
def radio() -> RadioModel:
    """The tiny backbone with an adaptor that has texts and one without a summary."""
    torch.manual_seed(0)
    return RadioModel(RadioConfig.from_preset("radio-test", adaptors=ADAPTORS, preferred_resolution=[64, 64])).eval()


@pytest.fixture(scope="session")
def model(radio, tmp_path_factory) -> Path:
    """Its folder."""
    folder = tmp_path_factory.mktemp("model")
    radio.save_pretrained(folder)
    RadioImageProcessor.from_model_config(radio.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def words(radio, tmp_path_factory) -> Path:
    """The folder of the same backbone with a text tower."""
    folder = tmp_path_factory.mktemp("words")
    torch.manual_seed(1)
    zero_shot = RadioForZeroShotImageClassification.from_parts(radio, build_sentence_tower(TEXT_WIDTH), "words")
    zero_shot.save_pretrained(folder)
    RadioImageProcessor.from_model_config(radio.config).save_pretrained(folder)
    tokenizer = build_word_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of classes, `red/` and `blue/`, whose images differ a little."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, color in COLORS.items():
        (folder / name).mkdir()
        for number in range(NUM_PICTURES):
            shade = tuple(min(255, part + 3 * number) for part in color)
            Image.new("RGB", (80 + number, 64), shade).save(folder / name / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def run_script(elsewhere, tmp_path):
    """Return a function that runs a script with its words in an empty folder, without this repository."""

    def run(name: str, *words: object):
        return elsewhere.run((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"), tmp_path, *words)

    return run


@pytest.fixture
def output_of(run_script):
    """Return a function that runs a script, which must end well, and returns what it printed."""

    def run(name: str, *words: object) -> str:
        done = run_script(name, *words)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
