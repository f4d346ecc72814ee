"""Each evaluation of a saved folder gives its rows."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from foundation.settings import SettingsError
from model_cards.results import STUDENT
from training.demo_kit.assets import DemoAssets, Photograph
from training.evaluation import checkpoint as evaluation_of_checkpoints
from training.evaluation import tasks
from training.evaluation.checkpoint import TASKS, CheckpointEvaluation, EvaluationSettings, evaluate
from training.evaluation.data.demo import DemoData
from training.evaluation.extractors import RAW_PIXELS, Features
from training.recipe import RecipeError, load_recipe
from training.teachers.base import DEFAULT_GRID_STRIDE
from training.teachers.embedded import EfficientNetLite0Teacher


class ToyTeacher(EfficientNetLite0Teacher):
    """Answers with the colors of the patches, and takes them for three classes of ImageNet."""

    def __init__(self, feature_dim: int = 10, summary_dim: int | None = 6) -> None:
        torch.nn.Module.__init__(self)
        self.dims = feature_dim, summary_dim

    def answer(self, pixel_values: torch.Tensor) -> Features:
        feature_dim, summary_dim = self.dims
        colors = F.avg_pool2d(pixel_values, 8).repeat(1, 4, 1, 1)[:, :feature_dim]
        return Features(None if summary_dim is None else colors.mean((2, 3))[:, :summary_dim], colors)

    def classify(self, summary: torch.Tensor) -> torch.Tensor:
        return summary[:, :3]


@pytest.fixture
def evaluation(data, tiny_model, tmp_path, monkeypatch) -> CheckpointEvaluation:
    """The tiny model's, with a photograph and a teacher for each of its adaptors."""
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photograph.png")
    photograph = Photograph(tmp_path / "photograph.png", "CC0-1.0", "toy", "held_out")
    shown = DemoData(
        data.source,
        DemoAssets((), (), (photograph,), ("red", "green"), (), ""),
        data.classification,
        data.segmentation,
        data.unlabeled,
    )
    tiny_model.save_pretrained(tmp_path / "model")
    settings = EvaluationSettings(checkpoint=tmp_path / "model", consistency_sizes_px=[30, 64, 512])
    evaluation = CheckpointEvaluation(tiny_model, load_recipe("demo"), shown, settings)
    evaluation.teachers = {"teacher_a": ToyTeacher(), "teacher_b": ToyTeacher(summary_dim=None)}
    return evaluation


ROWS = {
    "knn": {RAW_PIXELS, STUDENT},
    "segmentation_probe": {RAW_PIXELS, STUDENT},
    "adaptor_fidelity": {"adaptor teacher_a", "adaptor teacher_b"},
    "zero_shot": {"teacher teacher_a", "adaptor teacher_a"},
    "resolution_consistency": {STUDENT},
}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_gives_its_rows(task, evaluation, monkeypatch):
    class Words:
        def encode(self, texts):
            return torch.tensor([[float("red" in text), float("green" in text), 0.1] for text in texts])

    monkeypatch.setattr(tasks, "SentenceEncoder", Words)
    monkeypatch.setattr(tasks, "imagenet_class_names", lambda: ["a red fox", "a green mamba", "a desk"])
    monkeypatch.setattr(tasks, "NUM_CONSE_CLASSES", 2)
    if task == "zero_shot":
        del evaluation.teachers["teacher_b"]  # without a summary
    measurements = TASKS[task](evaluation)
    assert {found.task for found in measurements} == {task}
    assert {found.model for found in measurements} == ROWS[task]
    assert all(-1 <= found.value <= 1 for found in measurements)


def test_consistency_is_measured_at_sizes_that_the_model_takes(evaluation):
    metrics = {found.metric for found in TASKS["resolution_consistency"](evaluation)}
    assert metrics == {"32 to 64 px", "32 to 64 px, centered"}


def test_sizes_that_are_one_to_the_model(evaluation):
    evaluation.settings = evaluation.settings.replace(consistency_sizes_px=[31, 32])
    with pytest.raises(ValueError, match=r"`consistency_sizes_px` \[31, 32\] are all 32 px to this model"):
        TASKS["resolution_consistency"](evaluation)


@pytest.mark.parametrize("sizes", [[], [64], [64, 64], [0, 64], [-8, 64]])
def test_sizes_that_cannot_be_compared(sizes):
    with pytest.raises(SettingsError, match="`consistency_sizes_px` must be at least two different sizes above 0, got"):
        EvaluationSettings(checkpoint="x", consistency_sizes_px=sizes)


def test_something_must_be_measured():
    with pytest.raises(SettingsError, match=r"`tasks` must be some of .*, got \[\]"):
        EvaluationSettings(checkpoint="x", tasks=[])


@pytest.mark.parametrize("name", ["there.txt", "model/config.json", "model"])
def test_only_results_are_replaced_by_results(evaluation, name, tmp_path):
    (tmp_path / "there.txt").write_text("precious")
    path = tmp_path / name
    before = path.read_text() if path.is_file() else None
    settings = evaluation.settings.replace(output=path)
    with pytest.raises(
        ValueError, match=rf"`output` must be a new file or earlier results, got '.*{name}', which holds"
    ):
        evaluate(settings, load_recipe("demo"))
    assert path.is_dir() if before is None else path.read_text() == before


def test_a_size_that_the_model_does_not_take(evaluation):
    with pytest.raises(ValueError, match=r"`size` must have sides that are multiples of 8 .* got 30 x 30"):
        evaluate(evaluation.settings.replace(size=30), load_recipe("demo"))


def test_teachers_are_those_of_the_recipe_that_have_an_adaptor(evaluation, monkeypatch):
    del evaluation.teachers
    with pytest.raises(RecipeError, match=r"'demo' names none of .* \['teacher_a', 'teacher_b'\]: give the --recipe"):
        evaluation.teachers  # noqa: B018
    first = SimpleNamespace(name="teacher_b")
    evaluation.recipe = SimpleNamespace(name="mine", teachers=[first, SimpleNamespace(name="other")])
    asked, strides = [], []

    def build(entries, grid_stride):
        asked.extend(entries)
        strides.append(grid_stride)
        return {entry.name: ToyTeacher() for entry in entries}

    monkeypatch.setattr(evaluation_of_checkpoints, "build_teachers", build)
    assert list(evaluation.teachers) == ["teacher_b"]
    assert asked == [first]
    assert strides == [evaluation.model.patch_size] != [DEFAULT_GRID_STRIDE]


def test_zero_shot_without_texts_and_classifier_is_refused(evaluation):
    evaluation.teachers = {"teacher_a": torch.nn.Identity()}
    with pytest.raises(RecipeError, match=r"`zero_shot` needs a text tower .* or an adaptor for a teacher with"):
        evaluation.zero_shot()


def test_a_folder_is_opened_measured_and_described(evaluation, monkeypatch, capsys, tmp_path):
    sizes = []

    def load(source, size, *, device):
        sizes.append(size)
        return evaluation.data

    monkeypatch.setattr(DemoData, "load", load)
    settings = evaluation.settings.replace(tasks=["knn", "knn"], size=32, output=tmp_path / "results.json")
    evaluate(settings, load_recipe("demo")).save(settings.output)
    sizes.clear()  # a second time, in place of the first results
    results = evaluate(settings, load_recipe("demo"))
    assert sizes == [32]
    assert {found.model for found in results.measurements} == {RAW_PIXELS, STUDENT}
    assert len(set(results.measurements)) == len(results.measurements)
    assert list(results.run["seconds"]) == ["knn"]
    assert results.run["command"] == f"python -m training.evaluate {settings.checkpoint} --tasks knn,knn"
    assert results.remarks == evaluation.data.remarks()
    assert "knn" in capsys.readouterr().out
