"""Every notebook runs from top to bottom on tiny models, and what it shows is so."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from documentation import ROOT
from transformers import pipeline

from modeling_radio import RadioModel
from notebooks.store import FOLDER, execute


pytest.importorskip("ipykernel", reason="needs the extra `dev`")
pytestmark = pytest.mark.tour


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line)]


def line_of(printed: str, start: str) -> list[float]:
    """Return the numbers with a point in the line that starts so."""
    (line,) = [line for line in printed.splitlines() if line.startswith(start)]
    return numbers(line)


def with_sharp_attention(model: Path, folder: Path) -> Path:
    """Return a copy of a folder whose attention is far from even, unlike that of new weights: windows then show."""
    shutil.copytree(model, folder)
    radio = RadioModel.from_pretrained(folder)
    with torch.no_grad():
        for block in radio.radio_model.model.blocks:
            block.attn.qkv.weight *= 30
    radio.save_pretrained(folder)
    return folder


def test_open_and_look(printed, model, tmp_path):
    text = printed("01_open_and_look", MODEL=str(with_sharp_attention(model, tmp_path / "sharp")), SIDE=128)
    assert "adaptors: words, dense" in text
    assert re.search(r"words: summary \(1, 12\), features \(1, 12, [45], 8\)", text)
    (difference,) = re.findall(r"largest difference of the summaries: (\S+)", text)
    assert float(difference) < 1e-5
    windows = [line for line in text.splitlines() if line.startswith("window")]
    assert numbers(windows[0])[-1] == pytest.approx(1)
    assert numbers(windows[-1])[-1] < 1


def test_without_a_model_that_of_the_package_is_taken_and_it_is_said(tmp_path):
    folder = tmp_path / "clone" / "notebooks"
    folder.mkdir(parents=True)
    notebook = execute(FOLDER / "01_open_and_look.ipynb", {"SIDE": 128}, folder=folder, timeout=120)
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "There is no runs/demo/final" in text
    assert "adaptors: none" in text
    assert "summary (1, 384)  features (1, 384, 4, 8)" in text


def test_words(printed, words, pictures):
    text = printed("02_words", MODEL=str(words), IMAGES=str(pictures), SIZE=64, WORDS=["cat", "dog", "rock"])
    assert "20 images of 2 classes: blue, red" in text
    assert re.search(r"names \(2, 12\): [01]\.\d+ right, guessing 0\.500, always the most frequent class 0\.500", text)


def test_finetune_with_lora(printed, model, tmp_path):
    settings = {"SIZE": 32, "STEPS": 120, "NUM_IMAGES": 400, "RANK": 8, "LEARNING_RATE": 3e-3}
    text = printed("03_finetune_with_lora", MODEL=str(model), OUTPUT=str(tmp_path / "digits"), **settings)
    (probe,), (lora,) = (line_of(text, f"{name}: accuracy") for name in ("probe", "LoRA"))
    assert lora > 0.15  # guessing: .10
    assert lora > probe
    classify = pipeline("image-classification", model=str(tmp_path / "digits"), trust_remote_code=True)
    assert len(classify(str(ROOT / "docs" / "photograph.jpg"), top_k=10)) == 10


def test_distil(printed, model, pictures, tmp_path):
    teachers = [
        {"name": "words", "kind": "radio", "source": str(model), "options": {"adaptor_name": "words"}},
        {"name": "whole", "kind": "radio", "source": str(model)},
    ]
    settings = {"NUM_IMAGES": 64, "SIZE": 32, "STEPS": 40, "BATCH_SIZE": 8}
    text = printed("04_distil", TEACHERS=teachers, DATA=str(pictures), OUTPUT=str(tmp_path / "run"), **settings)
    assert "model.safetensors" in text
    lines = [line_of(text, f"{name}, features") for name in ("words", "whole")]
    assert all(distilled > untrained + 0.1 for untrained, distilled in lines)


def test_evaluate_your_data(printed, model, pictures, tmp_path):
    text = printed("05_evaluate_your_data", MODEL=str(model), DATA=str(pictures), OUTPUT=str(tmp_path), SIZE=32)
    assert "of 20 images have their nearest neighbor in another class" in text
    measured = json.loads((tmp_path / "results.json").read_text())["measurements"]
    assert {"knn", "logistic_regression", "image_retrieval"} <= {each["task"] for each in measured}
    assert len({each["model"] for each in measured}) >= 3
    assert (tmp_path / "results.html").is_file()


def test_vision_language_model(printed, model, tmp_path):
    settings = {"SIZE": 64, "NUM_PICTURES": 300, "NUM_HELD_OUT": 50, "STEPS": 120, "LEARNING_RATE": 4e-3}
    text = printed("06_vision_language_model", MODEL=str(model), OUTPUT=str(tmp_path / "vlm"), **settings)
    losses = [numbers(line)[0] for line in re.findall(r"step \d+: (loss .*)", text)]
    assert losses[-1] < 0.4 * losses[0]
    seen, blind, guessing = (line_of(text, name)[0] for name in ("new pictures", "blind", "guessing"))  # colors
    assert guessing == 0.25
    assert seen > 0.45
    assert seen > blind + 0.15
    (difference,) = re.findall(r"largest difference of the answers: (\S+)", text)
    assert float(difference) < 1e-4
    assert "the tower is now of transformers.models.radio" in text
