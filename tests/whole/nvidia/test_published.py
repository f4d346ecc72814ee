"""NVIDIA's folders by name: opened, compared with NVIDIA's own code, asked by SigLIP2's words.

Those marked `hub` ask Hugging Face's Hub, run the code of NVIDIA's repositories, and print what differs. They need
about 20 GB, and have not been run yet:

    HF_HUB_OFFLINE=0 .venv/bin/python -m pytest -n 0 -s -m hub tests/whole/nvidia/test_published.py

The others do the same with a twin of that Hub, whose weights are small and random.
"""

import subprocess
from pathlib import Path

import huggingface_hub
import pytest
import torch
from local_hub import hub_in_place
from nvidia_twin import serve_twin
from transformers import pipeline

from modeling_radio import RadioModel
from modeling_radio.api import PHOTOGRAPH
from modeling_radio.core.hub import find_folder
from modeling_radio.figures.predictions import read_photograph
from modeling_radio.model_cards.parity import Parity
from modeling_radio_cli import main


PUBLISHED = {
    "nvidia/RADIO-B": None,
    "nvidia/C-RADIOv3-B": "siglip2",
    "nvidia/C-RADIOv3-L": "siglip2",
    "nvidia/C-RADIOv4-SO400M": "siglip2-g",
    "nvidia/C-RADIOv4-H": "siglip2-g",
}
"""Repositories, with the adaptor of SigLIP2 where there is one."""
WITH_WORDS = [name for name, adaptor in PUBLISHED.items() if adaptor]


@pytest.fixture
def twin(monkeypatch, tmp_path, elsewhere):
    """The twin of the Hub, with empty caches, and quick processes."""
    monkeypatch.setattr(subprocess, "run", elsewhere.run_command)
    with hub_in_place(monkeypatch) as hub:
        for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE"):
            monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path / name))
        serve_twin(hub)
        yield hub
        assert hub.unknown == []


def check_open(name: str) -> None:
    """Open a repository, and look at its features of the photograph."""
    model = RadioModel.from_pretrained(name).eval()
    pixels = read_photograph(PHOTOGRAPH)[None, :, :256, :256] / 255
    with torch.no_grad():
        features = model(pixels).features
    assert features.isfinite().all()
    assert features.std() > 0


def check_code(name: str, output: Path) -> None:
    """Compare a repository's own code with ours, backbone and adaptors of its folder; the command prints the table."""
    assert main(["compare-release", name, "--output", str(output), "--sizes", "128x192", "--windows", "4"]) == 0
    parity = Parity.load(output / "parity.json")
    assert {each.window for each in parity.agreements} == {None, 4}


def scores_of_words(name: str, folder: Path, words: list[str]) -> dict[str, float]:
    """Return the scores of words for the photograph, by the adaptor and the text tower of SigLIP2."""
    adaptor = str(PUBLISHED[name])
    assert main(["convert", name, str(folder), "--text-tower", "auto", "--text-adaptor", adaptor]) == 0
    classify = pipeline("zero-shot-image-classification", model=str(folder), trust_remote_code=True)
    scores = {each["label"]: each["score"] for each in classify(str(PHOTOGRAPH), candidate_labels=words)}
    print(name, scores)  # noqa: T201  (for those who ask the real Hub)
    return scores


@pytest.mark.parametrize("name", PUBLISHED)
def test_twins_open_and_agree_with_their_code(name, twin, tmp_path):
    check_open(name)
    check_code(name, tmp_path / "parity")


@pytest.mark.parametrize("name", WITH_WORDS)
def test_words_of_twins_are_canonicalized(name, twin, tmp_path):
    scores = scores_of_words(name, tmp_path / "folder", ["cat", "Cat.", "dog"])
    assert scores["cat"] == pytest.approx(scores["Cat."])
    assert scores["cat"] != pytest.approx(scores["dog"])


@pytest.mark.slow
def test_a_hub_that_answers_after_eight_seconds_is_waited_for(twin):
    twin.faults += [(r"/api/models/", "8 s"), (r"config\.json", "8 s"), (r"model\.safetensors", "8 s")]
    assert (find_folder("nvidia/C-RADIOv4-H") / "model.safetensors").is_file()
    assert twin.faults == []


@pytest.mark.hub
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_folders_open_and_agree_with_their_code(name, tmp_path):
    check_open(name)
    check_code(name, tmp_path / "parity")


@pytest.mark.hub
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", WITH_WORDS)
def test_published_folders_know_the_photograph_by_words(name, tmp_path):
    scores = scores_of_words(name, tmp_path / "folder", ["an otter", "Otter.", "a car", "a bowl of soup"])
    assert max(scores, key=lambda word: scores[word]) in ("an otter", "Otter.")
