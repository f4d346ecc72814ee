"""The comparison on toy data, with random students in place of distilled ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from foundation.interruption import Interrupted
from model_cards.results import Measurement, Results
from training import compare
from training.demo_kit.assets import DemoAssets, Photograph
from training.demo_kit.evaluation_sets import ClassificationSet, SegmentationSet
from training.evaluation.data.demo import DemoData
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.students import StudentEvaluation
from training.evaluation.tasks.base import Evaluation, Task
from training.evaluation.tasks.fidelity import fidelity
from training.evaluation.tasks.registry import TASKS
from training.recipe import Recipe, load_recipe, save_recipe
from training.student.build import build_student
from training.teachers.base import TeacherOutput


RECIPE = """
mixed_precision: "no"
student:
  config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, patch_size: 16, max_img_size: %d}
  adaptor: {hidden_size: 8, num_inner_blocks: 0}
teachers:
  - {name: a, kind: toy}
  - {name: b, kind: toy}
data: {source: toy, num_images: %d}
"""


class ToyTeacher(nn.Module):
    """Answers with pixels."""

    mean: Tensor

    def __init__(self, summary_dim: int | None) -> None:
        super().__init__()
        self.summary_dim, self.feature_dim = summary_dim, 3
        self.register_buffer("mean", torch.zeros(1))

    def answer(self, pixel_values: Tensor) -> TeacherOutput:
        summary = None if self.summary_dim is None else pixel_values.mean((2, 3))
        return TeacherOutput(summary, F.avg_pool2d(pixel_values, 16))


def toy_data(photograph: Path) -> DemoData:
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(6, 32, 32, dtype=torch.long)
    masks[:, :, 16:] = 1
    shown = Photograph(photograph, "CC0-1.0", "toy", "held_out")
    return DemoData(
        "toy",
        DemoAssets((), (), (shown,), ("red", "green"), (), "toy"),
        ClassificationSet(images, labels, images.flip(0), labels.flip(0), ("red", "green")),
        SegmentationSet(images, masks, images, masks, ("left", "right")),
        images,
    )


@pytest.fixture
def evaluation(tmp_path: Path) -> StudentEvaluation:
    photograph = tmp_path / "photograph.png"
    Image.linear_gradient("L").convert("RGB").save(photograph)
    data, teachers = toy_data(photograph), {"a": ToyTeacher(3), "b": ToyTeacher(None)}
    return StudentEvaluation(load_recipe(write_recipe(tmp_path / "any.yaml")), data, teachers, 32)  # pyrefly: ignore


def write_recipe(path: Path, *, max_img_size: int = 96, num_images: int = 8) -> str:
    path.write_text(RECIPE % (max_img_size, num_images))
    return str(path)


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training probes takes most of the time, and is tested elsewhere."""

    def probe(evaluation: Evaluation) -> list[Measurement]:
        return [evaluation.measurement("segmentation_probe", "mIoU", 0.5, "masks")]

    monkeypatch.setitem(TASKS, "segmentation_probe", Task(probe, "masks"))


@pytest.fixture
def runs(evaluation: StudentEvaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Names and seeds of the recipes that are run; each gives a random student of its seed."""
    done: list[tuple[str, int]] = []

    def run(recipe: Recipe, folder: Path) -> Path:
        done.append((recipe.name, recipe.seed))
        build_student(recipe, evaluation.teachers).save_pretrained(folder / "final")
        save_recipe(recipe, folder / "recipe.yaml")
        return folder / "final"

    monkeypatch.setattr(StudentEvaluation, "load", lambda recipe: evaluation)
    monkeypatch.setattr(compare, "run_recipe", run)
    monkeypatch.setattr(compare, "reachable_teachers", lambda recipe: recipe.teachers)
    monkeypatch.setattr(compare, "in_faster_precision", lambda recipe: recipe)
    monkeypatch.setattr(compare, "SIZES_PX", (32, 64, 96, 128))
    monkeypatch.chdir(tmp_path)
    return done


@pytest.fixture
def command(runs: list[tuple[str, int]], tmp_path: Path) -> Callable[..., int]:
    """Runs the command on two recipes and two seeds."""
    recipes = [write_recipe(tmp_path / f"{name}.yaml") for name in ("first", "second")]
    return lambda *arguments: compare.main([*recipes, "--seeds", "0,1", "--output", "out", *arguments])


def test_every_recipe_is_measured_with_every_seed(
    command: Callable[..., int], runs: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    assert runs == [("first", 0), ("second", 0), ("first", 1), ("second", 1)]
    assert {path.name for path in Path("out").iterdir()} == {
        "first",
        "second",
        "results.json",
        "resolution_consistency.png",
    }
    results = Results.load(Path("out/results.json"))
    assert {(found.model, found.seed) for found in results.measurements} == set(runs)
    first = [found for found in results.measurements if (found.model, found.seed) == ("first", 0)]
    assert {found.task for found in first} == {
        "knn",
        "segmentation_probe",
        "adaptor_fidelity",
        "resolution_consistency",
        "fixed_pattern",
        "shift_error",
    }
    # 128 px is more than the students take.
    assert [found.metric for found in first if found.task == "resolution_consistency"] == [
        "32 to 96 px",
        "32 to 96 px, centered",
        "64 to 96 px",
        "64 to 96 px, centered",
    ]
    assert results.run["command"].startswith("python -m training.compare ")
    printed = capsys.readouterr().out
    assert "| first" in printed
    assert "+-" in printed


def test_fidelity_is_the_mean_over_adaptors(evaluation: StudentEvaluation, tmp_path: Path) -> None:
    model = build_student(load_recipe(write_recipe(tmp_path / "x.yaml")), evaluation.teachers).eval()
    found = {entry.metric: entry.value for entry in compare.measure(evaluation, model, "x", 0, [32, 64])}
    student = evaluation.of(RadioFeatures(model, name="x", size_px=32))
    single = {name: fidelity(student, name) for name in ("a", "b")}
    values = [scores["features"].mean().item() for scores in single.values()]
    assert found["features, all adaptors"] == pytest.approx(sum(values) / 2)
    # Of the only teacher that has one.
    assert found["summary, all adaptors"] == pytest.approx(single["a"]["summary"].mean().item())


def test_what_is_measured_is_not_run_again(command: Callable[..., int], runs: list[tuple[str, int]]) -> None:
    assert command() == 0
    before = json.loads(Path("out/results.json").read_text())["measurements"]
    Path("out/second/seed-1/measured.json").unlink()
    runs.clear()
    assert command() == 0
    assert runs == [("second", 1)]
    assert json.loads(Path("out/results.json").read_text())["measurements"] == before


def test_results_of_another_recipe_are_not_taken_for_these(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    assert command("schedule.num_steps=7") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("compare: error: 'out/first/seed-0' belongs to another recipe (schedule.num_steps:")
    assert error.endswith("give another --output.")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("one", "one", "`recipes` must have different names, got ['one', 'one']"),
        ("one", "other_data", "`data` of recipe 'other_data' must equal that of 'one'"),
        ("one", "other_teachers", "`teachers` of recipe 'other_teachers' must equal that of 'one'"),
        ("one", "small", "`student.config.max_img_size` must be at least 64"),
        ("one", "demoo", "Unknown recipe 'demoo'. Did you mean 'demo"),
    ],
)
def test_recipes_that_cannot_be_compared_are_refused_before_the_first_run(
    first: str,
    second: str,
    message: str,
    runs: list[tuple[str, int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_recipe(tmp_path / "one.yaml")
    write_recipe(tmp_path / "other_data.yaml", num_images=9)
    write_recipe(tmp_path / "small.yaml", max_img_size=48)
    other = (tmp_path / "one.yaml").read_text().replace("name: b", "name: c")
    (tmp_path / "other_teachers.yaml").write_text(other)
    names = [f"{name}.yaml" if (tmp_path / f"{name}.yaml").exists() else name for name in (first, second)]
    assert compare.main([*names, "--output", "out"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert runs == []


def test_ctrl_c_ends_with_the_shells_status(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(recipe: Recipe, folder: Path) -> None:
        raise Interrupted("Stopped after step 3: the same command resumes.")

    monkeypatch.setattr(compare, "run_recipe", stop)
    assert command() == 130
    assert "compare: Stopped after step 3: the same command resumes." in capsys.readouterr().err
