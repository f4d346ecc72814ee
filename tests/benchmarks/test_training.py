"""Trainers of one student take turns, options stand beside the plain step, and other checkouts beside ours."""

from pathlib import Path

import pytest
import timm
import torch
from tiny_distillation import assert_same_tensors, distil, last_state
from transformers import Dinov2Config, Dinov2Model

from benchmarks import trainers, training
from benchmarks.data import draw_image
from benchmarks.steps import StepTimer
from modeling_radio import RadioConfig
from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.recipes.recipe import load_recipe
from modeling_radio.training.teachers.published.architectures import published_config


GROUPS = training.groups(Path("folder"))


def test_student_and_teacher_are_those_of_the_plain_loop(tmp_path: Path) -> None:
    recipe = load_recipe("demo", training.recipe_changes(tmp_path))
    ours, theirs = RadioConfig(**recipe.student.config), trainers.build_plain()
    student = theirs.student
    assert (ours.hidden_size, ours.num_hidden_layers, ours.num_attention_heads, ours.patch_size) == (
        student.embed_dim,
        len(student.blocks),
        student.blocks[0].attn.num_heads,
        student.patch_embed.patch_size[0],
    )
    (teacher,) = recipe.teachers
    assert teacher.options == {"weights": "random"}
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        assert getattr(published_config(teacher.source), field) == getattr(theirs.teacher.config, field)
    assert (recipe.mesa.weight, recipe.damp.sigma) == (0, 0)


def test_the_plain_loop_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        draw_image(64, 64, number).save(tmp_path / f"{number}.jpg")
    monkeypatch.setattr(trainers, "SIDE_PX", 112)
    torch.manual_seed(0)
    student = timm.create_model(trainers.STUDENT, img_size=112, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    teacher = Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=14))
    network = trainers.PlainDistillation(student, teacher)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    steps = trainers.plain_steps(network, tmp_path, 2)
    assert all(torch.isfinite(next(steps)) for _ in range(3))  # more than an epoch
    moved = {name for name, weight in network.state_dict().items() if not torch.equal(weight, before[name])}
    assert "student.blocks.1.attn.qkv.weight" in moved
    assert {"heads.0.2.weight", "heads.1.2.weight", "standardizers.1.mean"} <= moved
    assert not any(name.startswith("teacher.") for name in moved)


@pytest.mark.usefixtures("one_thread", "tiny_world")
def test_timed_steps_are_the_steps_of_a_run(recipe_file: str) -> None:
    distil(recipe_file, "run", "schedule.num_steps=4")
    distiller = Distiller(load_recipe(recipe_file, ["schedule.num_steps=4"]), Path("timed"))
    distiller.build()
    timer = StepTimer(distiller)
    timer.run(1)
    seconds = timer.run(3)
    expected = {name: value for name, value in last_state("run", 4).items() if name.startswith("student/")}
    assert_same_tensors(
        {f"student/{name}": value for name, value in distiller.parts.model.state_dict().items()}, expected
    )
    parts = {name: value for name, value in seconds.items() if name not in ("wall", "cpu")}
    assert parts.keys() == {"data", "passes", "optimizer", "average"}
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(seconds["wall"])


@pytest.mark.parametrize("option", [option for group in GROUPS.values() for option in group.options])
def test_an_option_is_one_change_of_its_plain_step(option: str) -> None:
    (group,) = [group for group in GROUPS.values() if option in group.options]
    plain, changed = (
        load_recipe("demo", changes).to_dict() for changes in (group.plain, [*group.plain, *group.options[option]])
    )
    assert len([section for section in plain if plain[section] != changed[section]]) == 1
