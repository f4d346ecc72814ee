"""Trainers of one student from one teacher take turns; the student's part stands beside its bare passes."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from transformers import Dinov2Config, Dinov2Model

from benchmarks import training
from benchmarks.measuring.new_process import ROOT
from benchmarks.measuring.step_process import StepProcess
from benchmarks.peers import plain_loop
from modeling_radio import RadioConfig
from training.distillation.trainer import Distiller
from training.recipe import load_recipe
from training.teachers.published.architectures import published_config


def test_student_and_teacher_are_those_of_the_plain_loop(tmp_path: Path) -> None:
    recipe = load_recipe("demo", training.recipe_changes(tmp_path, 16))
    ours, theirs = RadioConfig(**recipe.student.config), plain_loop.build_loop()
    shape = (ours.hidden_size, ours.num_hidden_layers, ours.num_attention_heads, ours.patch_size)
    student = theirs.student
    assert shape == (
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


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    training.draw_pictures(folder, 4)
    return folder


def test_the_plain_loop_learns(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_loop, "SIDE_PX", 112)
    torch.manual_seed(0)
    student = timm.create_model("vit_tiny_patch16_224", img_size=112, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    teacher = Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=14))
    network = plain_loop.PlainDistillation(student, teacher)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    loop = plain_loop.Loop(network, pictures, 2)
    losses = [loop.step() for _ in range(2)]
    assert all(torch.isfinite(loss) for loss in losses)
    moved = {name for name, weight in network.state_dict().items() if not torch.equal(weight, before[name])}
    assert "student.blocks.1.attn.qkv.weight" in moved
    assert {"heads.0.2.weight", "heads.1.2.weight", "standardizers.1.mean"} <= moved
    assert not any(name.startswith("teacher.") for name in moved)


def test_a_loop_of_another_process_runs_as_many_steps_as_are_asked_for(tmp_path: Path) -> None:
    count = tmp_path / "count"
    code = f"""
import sys, time
from benchmarks.peers.stepping import run_steps
def step():
    print("not an answer")
    time.sleep(0.01)
    open({str(count)!r}, "a").write(".")
run_steps(step, 2)
"""
    process = StepProcess("loop", [sys.executable, "-c", code], ROOT)
    assert count.read_text() == ".."
    assert process.time(3)["wall"] >= 0.01
    assert count.read_text() == "....."
    process.close()


def test_a_loop_that_ends_is_told() -> None:
    with pytest.raises(RuntimeError, match="The steps of 'loop' ended with status 3; see above"):
        StepProcess("loop", [sys.executable, "-c", "raise SystemExit(3)"], ROOT)


@pytest.mark.usefixtures("one_thread", "tiny_world")
@pytest.mark.parametrize("passes_at_once", [1, 2])
def test_the_student_has_a_share_of_its_step(recipe_file: str, passes_at_once: int) -> None:
    changes = ["student.config.drop_path_rate=0", f"student.passes_at_once={passes_at_once}", "schedule.num_steps=50"]
    row = training.student_share("tiny", recipe_file, changes, 3, "run")
    assert row["recipe"] == "tiny"
    assert row["bare passes, ms"] > 0
    assert row["student's part, ms"] > row["optimizer, ms"] + row["average, ms"]
    assert row["GFLOP"] > 0
    assert row["at the measured peak, ms"] < row["bare passes, ms"]


@pytest.mark.usefixtures("one_thread", "tiny_world")
def test_bare_passes_reach_every_weight(recipe_file: str) -> None:
    distiller = Distiller(load_recipe(recipe_file, ["student.config.drop_path_rate=0"]), Path("run"))
    distiller._build()
    examples = distiller.source.examples(lambda: distiller.plan.steps(0, 1))
    training.run_bare(distiller, [next(iter(examples))])
    without = [name for name, weight in distiller.model.named_parameters() if weight.grad is None]
    assert without == []


def test_rows() -> None:
    ours = [{"wall": 0.1, "cpu": 0.1, "passes": 0.05}, {"wall": 0.3, "cpu": 0.1, "passes": 0.07}]
    rows = training.summarize({"ours": ours, "other": [{"wall": 0.2}, {"wall": 0.3}]}, 16)
    assert rows[0]["step, ms"] == 200
    assert rows[0]["images per second"] == 80
    assert rows[0]["passes, ms"] == 60
    assert rows[1]["ours is times as fast"] == "1.50 (1.25 to 1.75)"


def test_growth_on_paper() -> None:
    alone, two, *_ = training.growth_on_paper(0.004, 12_500_000)
    assert (alone["sent by each, MB"], alone["computing"]) == (0, 1)
    assert (two["sent by each, MB"], two["computing"]) == (50, 0.5)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--peer-python=nowhere", "`peer_python` must be the path of a Python that has lightly-train and timm"),
        ("--batch-size=1000", "`batch_size` must be at most 128"),
        ("--rounds=0", "`rounds` must be "),
    ],
)
def test_what_cannot_be_timed_is_one_line(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert training.main([argument]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
