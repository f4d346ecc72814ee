"""All that names a repository of NVIDIA's runs on a twin of the Hub, as it is written: see `nvidia_twin`.

`test_code_blocks` runs the Python blocks. Here are the lines of shells, the recipes, and the examples of `--help`.
"""

import shlex
import shutil
import subprocess
from pathlib import Path

import gradio
import huggingface_hub
import pytest
import torch
import uvicorn
import yaml
from documentation import NVIDIA_NAME, PAGES, ROOT, blocks
from local_hub import LocalHub, hub_in_place
from nvidia_twin import DEPTH, HEADS, TWINS, WIDTH, serve_twin
from tiny_distillation import leave_progress_undrawn
from tiny_folders import save_images

from modeling_radio import RadioModel
from modeling_radio.api import PHOTOGRAPH
from modeling_radio.core.hub import find_folder
from modeling_radio.core.opening import open_model
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.recipes.recipe import Recipe, StudentRecipe, list_recipes, load_recipe
from modeling_radio_cli import COMMANDS, FORMATS, MORE_COMMANDS, find_module, main


pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = sorted(
    path
    for pattern in (*PAGES, "notebooks/**/*.ipynb", "training/recipes/**/*.yaml", "model_cards/templates/*")
    for path in ROOT.glob(pattern)
)
"""Pages, notebooks, recipes and the templates of cards."""


def shell_lines() -> list[str]:
    """Return the lines of `radio` in shell blocks that name a repository of NVIDIA's."""
    texts = (block.text.replace("\\\n", " ") for block in blocks("bash"))
    lines = sorted({line for text in texts for line in text.splitlines() if NVIDIA_NAME.search(line)})
    return [line for line in lines if line.startswith("radio ")]


def examples_of_help() -> list[str]:
    """Return the examples of commands that name one."""
    modules = {*(module for module, _ in COMMANDS.values()), *MORE_COMMANDS.values()}
    modules |= {module for formats in FORMATS.values() for module in formats.values()}
    found = [text for module in sorted(modules) for text in command_of(module).examples]
    return [text for text in found if NVIDIA_NAME.search(text)]


def command_of(module: str):
    return __import__(f"modeling_radio.{module}", fromlist=["COMMAND"]).COMMAND


def recipes() -> dict[str, Recipe]:
    """Return the recipes that name one, and those in blocks of pages."""
    found = {name: load_recipe(name, ["data.source=images"]) for name in list_recipes()}
    return {name: recipe for name, recipe in found.items() if NVIDIA_NAME.search(yaml.safe_dump(recipe.to_dict()))}


@pytest.fixture
def hub(monkeypatch, tmp_path) -> LocalHub:
    """The twin of the Hub, asked by this process with an empty cache, and a working directory with images."""
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "images")
    shutil.copy(PHOTOGRAPH, tmp_path / "photo.jpg")
    constants = huggingface_hub.constants
    with hub_in_place(monkeypatch) as hub:
        for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE"):
            monkeypatch.setattr(constants, name, str(tmp_path / name))
        serve_twin(hub)
        yield hub
        assert hub.unknown == []


def test_the_twin_has_every_release_that_a_text_names():
    named = {name: str(path) for path in TEXTS for name in NVIDIA_NAME.findall(path.read_text())}
    named |= {name: line for line in examples_of_help() for name in NVIDIA_NAME.findall(line)}
    assert len(named) > 3
    assert {name: text for name, text in named.items() if name not in TWINS} == {}


@pytest.mark.parametrize("line", shell_lines())
def test_lines_of_pages_run(line, hub, monkeypatch, elsewhere):
    monkeypatch.setattr(subprocess, "run", elsewhere.run_command)  # quick processes
    monkeypatch.setattr(gradio.Blocks, "launch", lambda *_, **__: None)  # the page is built, then closed
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "distill":
        settings = command_of("training.distill").read(words[1:])
        take_a_step(load_recipe(settings.recipe, settings.changes), monkeypatch)
    else:
        assert main(words) == 0


@pytest.mark.parametrize("line", examples_of_help())
def test_examples_of_help_are_taken_and_what_they_name_opens(line, hub):
    name, *words = shlex.split(line)[1:]
    module, words = find_module(name, words)
    command_of(module).read(words)
    [release] = NVIDIA_NAME.findall(line)
    opened = open_model(find_folder(release), dtype=None, as_backbone=True).model
    assert opened(torch.rand(1, 3, 64, 96), adaptor_names=[]).features.isfinite().all()


SMALL_STUDENT = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
TINY = {"kind": "tiny_distillation:TinyTeacher", "source": None, "run_mode": "native", "upsample": "bilinear"}


def take_a_step(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> RadioModel:
    """Take one step of a recipe's last stage with a small student, small images and few of them.

    Teachers that are not NVIDIA's are tiny ones; those that are, and where the student starts, are the recipe's.
    """
    leave_progress_undrawn(monkeypatch)
    values = recipe.to_dict()
    for teacher in values["teachers"]:
        if not NVIDIA_NAME.fullmatch(str(teacher["source"])):
            teacher |= {**TINY, "options": {"feature_dim": 12, "summary_dim": 10}}
    for partition in values["partitions"]:
        partition |= {"sizes_px": [64], "vitdet_windows": None, "vitdet_probability": 0.0, "accumulation_steps": 1}
        partition |= {"token_budget": 40} if partition.get("token_budget") else {"batch_size": 2}
    student = recipe.student.to_dict()
    small = {"preset": "radio-test", "adaptor": {"hidden_size": 16, "num_inner_blocks": 0}}
    small["config"] = SMALL_STUDENT | {key: value for key, value in student["config"].items() if key == "num_registers"}
    if student["num_tokens"] is not None:  # a RADIO1D
        small["config"] |= {"downscale_levels": [3], "decoder_depth": 2}
    kept = {name: student[name] for name in ("init_from", "num_tokens")}
    values["student"] = {**StudentRecipe().to_dict(), **kept, **small}
    values["stages"] = []
    values["data"] |= {"source": "images", "num_images": 4, "num_workers": 0}
    values["schedule"] |= {"num_steps": 1, "warmup_steps": 0}
    values["logging"] |= {"trackers": [], "metrics_every_steps": None}
    Path("small.yaml").write_text(yaml.safe_dump(values))
    final = run_recipe(load_recipe("small.yaml"), Path("run"))
    assert final is not None
    return RadioModel.from_pretrained(final)


def test_recipes_that_name_nvidias_learn_from_it(hub, monkeypatch):
    """Those that differ in nothing but student and sizes are one case."""
    taught: dict[str, str] = {}
    for name, recipe in recipes().items():
        teachers = yaml.safe_dump([each.to_dict() for each in recipe.teachers]) + str(recipe.student.init_from)
        taught.setdefault(teachers, name)
    assert "c_radio_v4_1d_h" in taught.values()
    assert len(taught) == 2
    for name in taught.values():
        recipe = load_recipe(name, ["data.source=images"])
        model = take_a_step(recipe, monkeypatch)
        assert list(model.adaptors) == [teacher.name for teacher in recipe.teachers]
        shutil.rmtree("run")


@pytest.mark.parametrize("block", [each for each in blocks("yaml") if NVIDIA_NAME.search(each.text)], ids=str)
def test_recipes_in_pages_learn_from_it(block, hub, monkeypatch):
    Path("mine.yaml").write_text(block.text)
    recipe = load_recipe("mine.yaml", ["data.source=images"])
    assert list(take_a_step(recipe, monkeypatch).adaptors) == [teacher.name for teacher in recipe.teachers]
