"""Measurements on held-out images: numbers alone, and whole runs on the tiny world of `tiny_distillation.py`."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny_distillation as tiny
import torch
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional as F

from core.files import write_text
from modeling_radio import RadioConfig, RadioModel
from training.distillation import tracking
from training.distillation.held_out import HeldOutMetrics
from training.distillation.tracking import RunHistory
from training.evaluation.metrics.fidelity import fixed_pattern_energy
from training.evaluation.metrics.representation import effective_rank
from training.recipe import Recipe, RecipeError, load_recipe
from training.targets.phi_s import FeatureStandardizer, PhiS
from training.teachers.base import Teacher


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

ADAPTORS = [
    {"name": "semantic", "summary_dim": 10, "feature_dim": 12, "hidden_size": 8, "token_index": 0},
    {"name": "segmenter", "summary_dim": None, "feature_dim": 9, "hidden_size": 8, "token_index": 1},
]
CONFIG = RadioConfig.from_preset("radio-test", num_hidden_layers=2, summary_idxs=[0], adaptors=ADAPTORS)


def teachers() -> dict[str, Teacher]:
    return {
        "semantic": tiny.TinyTeacher("semantic", feature_dim=12, summary_dim=10),
        "segmenter": tiny.TinyTeacher("segmenter", feature_dim=9, summary_dim=None),
    }


def standardizers() -> dict[str, FeatureStandardizer]:
    fitted = {}
    for name, teacher in teachers().items():
        fitted[name] = PhiS(teacher.feature_dim)
        fitted[name].update(torch.randn(4, teacher.feature_dim, 8, 8) * 2 + 1)
        fitted[name].end_step()
        fitted[name].refit()
    return fitted


def metrics_of(recipe: Recipe, config: RadioConfig = CONFIG) -> HeldOutMetrics | None:
    return HeldOutMetrics.of_run(recipe, config, teachers(), Accelerator(cpu=True))


@pytest.fixture
def recipe(recipe_file: str, folder: Path) -> Recipe:
    return load_recipe(recipe_file, [*measured(folder), "partitions.low.sizes_px=[32, 48, 64, 96]"])


def measured(folder: Path, every_steps: int = 200) -> list[str]:
    return [f"logging.picture_source={folder}", f"logging.metrics_every_steps={every_steps}"]


class Perfect(torch.nn.Module):
    """A "network" whose adaptors answer as their teachers do, in standardized spaces, and whose backbone is one."""

    def __init__(self, standardizers: Mapping[str, FeatureStandardizer], pattern: float = 0.0) -> None:
        super().__init__()
        self.teachers, self.standardizers, self.pattern = teachers(), standardizers, pattern

    def forward(self, pixel_values: Tensor, adaptor_names: list[str], **_: object) -> object:
        class Output:
            features = self.teachers["semantic"].answer(pixel_values).features
            adaptors: dict = {}

        places = torch.linspace(0, 1, Output.features.shape[-1]).expand_as(Output.features)
        Output.features = Output.features + self.pattern * places
        for name in adaptor_names:
            output = self.teachers[name].answer(pixel_values)
            features = self.standardizers[name].standardize(output.features)
            Output.adaptors[name] = type("Answer", (), {"summary": output.summary, "features": features})
        return Output


def test_a_perfect_student_has_full_marks(recipe: Recipe) -> None:
    metrics = metrics_of(recipe)
    assert metrics is not None
    known = standardizers()
    values = metrics.measure({"": Perfect(known)}, known)  # pyrefly: ignore[bad-argument-type]
    sizes = (32, 64, 96)  # the smallest, middle and largest of four
    of_backbone = {f"{name}/{size}px" for name in ("fixed_pattern", "shift_error", "effective_rank") for size in sizes}
    of_pairs = {f"consistency{suffix}/{size}px" for suffix in ("", "_centered") for size in sizes[:2]}
    of_adaptors = {
        f"{name}{suffix}/{size}px"
        for name in ("dense_fidelity/semantic", "dense_fidelity/segmenter", "summary_fidelity/semantic")
        for suffix in ("",)
        for size in sizes
    }
    centered = {name.replace("_fidelity", "_fidelity_centered") for name in of_adaptors}
    assert values.keys() == of_backbone | of_pairs | of_adaptors | centered
    assert all(values[name] == pytest.approx(1, abs=1e-5) for name in of_adaptors | centered)
    for size in sizes:  # a convolution by patches moves with its image
        assert values[f"shift_error/{size}px"] < 1e-10


def test_numbers_are_those_of_the_functions(recipe: Recipe) -> None:
    metrics = metrics_of(recipe.replace(logging=recipe.logging.replace(metrics_sizes_px=[48])))
    assert metrics is not None
    model = RadioModel(CONFIG).eval()
    values = metrics.measure({"": model}, standardizers())
    (view,) = metrics.views
    first, _ = view.of_images(metrics.images)
    with torch.no_grad():
        features = model(first, feature_format="NCHW", adaptor_names=[], return_dict=True).features
    assert values["fixed_pattern/48px"] == pytest.approx(fixed_pattern_energy(features), rel=1e-5)
    tokens = features.movedim(1, -1).flatten(0, 2)
    assert values["effective_rank/48px"] == pytest.approx(effective_rank(tokens), rel=1e-4)


def test_fidelity_is_of_the_teachers_own_space(recipe: Recipe) -> None:
    metrics = metrics_of(recipe.replace(logging=recipe.logging.replace(metrics_sizes_px=[48])))
    assert metrics is not None
    model, known = RadioModel(CONFIG).eval(), standardizers()
    values = metrics.measure({"": model}, known)
    (view,) = metrics.views
    first, _ = view.of_images(metrics.images)
    with torch.no_grad():
        answers = model(first, feature_format="NCHW", return_dict=True).adaptors
    for name, teacher in teachers().items():
        features, expected = known[name].invert(answers[name].features), teacher.answer(first).features
        cosine = F.cosine_similarity(features, expected, dim=1).mean().item()
        assert values[f"dense_fidelity/{name}/48px"] == pytest.approx(cosine, abs=1e-5)


def test_a_pattern_fixed_to_the_grid_and_a_shift_show(recipe: Recipe) -> None:
    metrics = metrics_of(recipe)
    assert metrics is not None
    known = standardizers()
    free, fixed = (metrics.measure({"": Perfect(known, pattern)}, known) for pattern in (0.0, 50.0))  # pyrefly: ignore
    for size in (32, 64, 96):
        assert fixed[f"fixed_pattern/{size}px"] > 0.9 > free[f"fixed_pattern/{size}px"]
        assert fixed[f"shift_error/{size}px"] > 0.05 > free[f"shift_error/{size}px"]
    # Along one line there is one direction.
    assert fixed["effective_rank/96px"] < free["effective_rank/96px"]


def test_a_collapsed_student_has_no_numbers_but_goes_on(recipe: Recipe) -> None:
    metrics = metrics_of(recipe)
    assert metrics is not None
    known = standardizers()
    network = Perfect(known)
    network.teachers["semantic"].weight.data.zero_()
    values = metrics.measure({"": network}, known)  # pyrefly: ignore[bad-argument-type]
    for name in ("fixed_pattern", "shift_error", "effective_rank"):
        assert values[f"{name}/64px"] != values[f"{name}/64px"]


def test_measuring_leaves_the_network_as_it_was(recipe: Recipe) -> None:
    metrics = metrics_of(recipe)
    assert metrics is not None
    model, known = RadioModel(CONFIG), standardizers()
    state = torch.get_rng_state()
    modes = {}
    for is_training in (True, False):
        model.train(is_training)
        modes[is_training] = metrics.measure({"student/": model}, known)
        assert model.training == is_training
    assert modes[True] == modes[False]
    assert all(name.startswith("student/") for name in modes[True])
    assert torch.equal(torch.get_rng_state(), state)


def test_high_resolutions_are_compared_at_some_places_in_small_passes(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, known = RadioModel(CONFIG).eval(), standardizers()
    whole = metrics_of(recipe)
    monkeypatch.setattr("training.distillation.held_out.NUM_TOKENS", 40)
    monkeypatch.setattr("training.distillation.held_out.MAX_TOKENS_PER_PASS", 20)
    partly = metrics_of(recipe)
    assert whole is not None
    assert partly is not None
    first, second = whole.measure({"": model}, known), partly.measure({"": model}, known)
    for name in ("fixed_pattern/96px", "shift_error/96px", "summary_fidelity/semantic/96px", "consistency/64px"):
        assert second[name] == pytest.approx(first[name], rel=1e-3)
    assert second["dense_fidelity/semantic/96px"] != first["dense_fidelity/semantic/96px"]
    assert second["dense_fidelity/semantic/96px"] == pytest.approx(first["dense_fidelity/semantic/96px"], abs=0.05)


def test_teachers_are_asked_at_the_sizes_that_they_are_trained_at(recipe_file: str, folder: Path) -> None:
    partitions = "[{name: low, sizes_px: [32], teachers: [semantic]}, {name: high, sizes_px: [64]}]"
    settings = [*measured(folder), f"partitions={partitions}", "logging.metrics_sizes_px=[32,48,64]"]
    metrics = metrics_of(load_recipe(recipe_file, settings))
    assert metrics is not None
    asked = {size: set(references) for size, references in metrics._references.items()}
    assert asked == {32: {"semantic"}, 48: {"semantic", "segmenter"}, 64: {"semantic", "segmenter"}}


def test_no_measurements_without_held_out_images(recipe_file: str, folder: Path) -> None:
    for settings in (
        ["logging.metrics_every_steps=1"],  # the data has none
        [f"logging.picture_source={folder}", "logging.metrics_every_steps=null"],
    ):
        assert metrics_of(load_recipe(recipe_file, settings)) is None
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    assert (
        metrics_of(load_recipe(recipe_file, [*measured(folder)[1:], f"data.source={folder}"])) is None
    )  # one image: none is held out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("logging.metrics_sizes_px=[40]", "`logging.metrics_sizes_px` cannot have 40 px: .* multiples of 16"),
        ("logging.metrics_sizes_px=[64, 16]", r"`logging.metrics_sizes_px` must be sizes of at least 32 px, got \[64"),
        ("logging.metrics_sizes_px=[]", "`logging.metrics_sizes_px` must be at least one size, or null"),
        ("logging.metrics_every_steps=0", "`logging.metrics_every_steps` must be an integer above 0, or null, got 0"),
        ("logging.picture_source=nowhere", "`logging.picture_source` must be one of .* or a folder of images"),
    ],
)
def test_wrong_settings_are_refused(recipe_file: str, folder: Path, setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        metrics_of(load_recipe(recipe_file, [*measured(folder), setting]))


# Whole runs


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that only hold what they would be drawn from."""
    monkeypatch.setattr(tracking, "draw_progress", lambda series, path: write_text(path, json.dumps(series)))


def history_of(output: str) -> list[dict]:
    return [json.loads(line) for line in Path(output, "history.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("quick_pictures")
def test_a_stopped_run_measures_the_same_and_has_no_gap(recipe_file: str, folder: Path) -> None:
    settings = [*tiny.REGULARIZED, *measured(folder, 3), "schedule.num_steps=5", "logging.trackers=[tensorboard]"]
    tiny.distil(recipe_file, "blind", *settings, "logging.metrics_every_steps=null")
    tiny.distil(recipe_file, "whole", *settings)
    tiny.distil(recipe_file, "parts", *settings, stop_at=4)
    # As after a kill: what was measured after the checkpoint of step 4 is in the file already.
    with Path("parts/history.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "values": {"fixed_pattern/32px": 7.0}}\n{"step": 5, "val')
    tiny.distil(recipe_file, "parts", *settings)
    assert history_of("parts") == history_of("whole")
    drawn = json.loads(Path("parts/pictures/progress.png").read_text(encoding="utf-8"))
    assert drawn["fixed_pattern/32px"][0] == [3, 5]
    assert drawn["features/semantic"][0] == [2, 4]
    for run in ("whole", "parts"):
        tiny.assert_same_tensors(tiny.last_state("blind", 5), tiny.last_state(run, 5))
    assert not Path("blind/pictures").exists()
    recorded = EventAccumulator("whole/logs").Reload()
    for name, (steps, values) in drawn.items():
        if name.endswith("px"):
            assert [event.step for event in recorded.Scalars(name)] == steps
            assert [event.value for event in recorded.Scalars(name)] == pytest.approx(values, rel=1e-5)


@pytest.mark.usefixtures("quick_pictures")
def test_the_last_measurement_is_that_of_the_exported_model(recipe_file: str, folder: Path) -> None:
    settings = [*measured(folder), "logging.metrics_sizes_px=[48]", "schedule.num_steps=2"]
    for is_exported in (True, False):
        output = f"run-{is_exported}"
        path = tiny.distil(recipe_file, output, *settings, f"ema.is_exported={is_exported}")
        assert path is not None
        recipe = load_recipe(recipe_file, settings)
        model = RadioModel.from_pretrained(path)
        metrics = HeldOutMetrics.of_run(recipe, model.config, teachers(), Accelerator(cpu=True))
        assert metrics is not None
        plain = {name: FeatureStandardizer(teacher.feature_dim) for name, teacher in teachers().items()}
        expected = metrics.measure({"": model}, plain)
        series = RunHistory(Path(output, "history.jsonl"), 2).series()
        prefix = "" if is_exported else "student/"
        for name, value in expected.items():
            assert series[f"{prefix}{name}"][1][-1] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_a_run_says_and_draws_what_it_measured(
    recipe_file: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.distil(recipe_file, "run", *measured(folder), "schedule.num_steps=2", "schedule.warmup_steps=1")
    said = capfd.readouterr()
    assert "Step 2, held-out images at 32, 48 px: dense fidelity (centered) " in said.out + said.err
    assert [path.name for path in Path("run/pictures").iterdir()] == ["progress.png"]
    with Image.open("run/pictures/progress.png") as picture:
        assert picture.width > picture.height > 600  # three rows of panels
