"""Held-out images: measurements and figures of a run."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tiny_distillation as tiny
import torch
from accelerate import Accelerator
from PIL import Image
from refusals import refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.files import write_text
from modeling_radio.data.training_images import build_images
from modeling_radio.figures.rows import CELL_INCHES, DPI, GAP_INCHES, LABEL_INCHES
from modeling_radio.metrics.representation import effective_rank
from modeling_radio.training.distillation import neighbors, tracking
from modeling_radio.training.distillation.held_out import (
    HeldOutFigures,
    HeldOutMetrics,
    ViewPair,
    describe_missing_images,
    held_out_images,
    held_out_source,
)
from modeling_radio.training.distillation.monitoring import Monitors
from modeling_radio.training.distillation.neighbors import HeldOutNeighbors
from modeling_radio.training.losses.fidelity import fixed_pattern_energy
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, load_recipe
from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.targets.phi_s import FeatureStandardizer, PhiS
from modeling_radio.training.teachers.base import Teacher


pytestmark = pytest.mark.usefixtures("tiny_world")


def recipe_with(recipe_file: str, **changes: object) -> Recipe:
    return load_recipe(recipe_file, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])


def test_where_held_out_images_come_from(recipe_file: str, folder: Path) -> None:
    assert held_out_source(recipe_with(recipe_file)) is None
    assert held_out_source(recipe_with(recipe_file, data__source=folder)) == str(folder)
    assert held_out_source(recipe_with(recipe_file, logging__picture_source=folder)) == str(folder)
    assert held_out_source(load_recipe("demo")) == "demo"


def test_a_folder_that_is_streamed_holds_out_nothing(recipe_file: str, folder: Path, tmp_path: Path) -> None:
    streamed = {"data": f"{{source: {folder}, num_images: null, streaming: true}}", "views__teachers": "online"}
    assert held_out_source(recipe_with(recipe_file, **streamed)) is None
    mixed_in = f"[{{source: {folder}, weight: 0.5}}]"
    mixed = {**streamed, "data": f"{{source: a/b, num_images: null, streaming: true, mixed_in: {mixed_in}}}"}
    (folder / "inner").mkdir()
    same = (folder, f"{folder}/", folder / "inner", folder / ".." / folder.name)
    for settings, source in ((mixed, folder), *((streamed, source) for source in same)):
        recipe = recipe_with(recipe_file, **settings, logging__picture_source=source)
        refused("logging.picture_source", lambda recipe=recipe: held_out_source(recipe), RecipeError)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert held_out_source(recipe_with(recipe_file, **streamed, logging__picture_source=elsewhere)) == str(elsewhere)


def test_a_run_whose_data_holds_out_no_images_says_so(
    recipe_file: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"logging__metrics_every_steps": 2}
    line = describe_missing_images(recipe_with(recipe_file, **measured))
    assert line.startswith("No held-out images in `data.source` 'noise'")
    assert "set `logging.picture_source`" in line
    assert describe_missing_images(recipe_with(recipe_file)) == ""  # none are asked for
    assert describe_missing_images(recipe_with(recipe_file, **measured, logging__picture_source=folder)) == ""
    Monitors.of_run(recipe_with(recipe_file, **measured), CONFIG, teachers(), Accelerator(cpu=True), folder)
    assert line in capsys.readouterr().out


def test_images_are_spread_over_those_held_out(recipe_file: str, tmp_path: Path) -> None:
    folder = tmp_path / "grays"
    folder.mkdir()
    for number in range(100):
        Image.new("RGB", (40, 40), (number, number, number)).save(folder / f"{number:03}.png")
    recipe = recipe_with(recipe_file, data__source=folder)
    every = build_images(str(folder), size=32, split="held_out")
    assert len(every) == 10
    chosen = held_out_images(recipe, 32, 4)
    assert chosen is not None
    assert chosen.shape == (4, 3, 32, 32)
    assert torch.equal(chosen, torch.stack([every[index] for index in (0, 2, 5, 7)]))
    everything = held_out_images(recipe, 32, 99)
    assert everything is not None
    assert len(everything) == 10


def test_a_folder_of_one_image_holds_none_out(recipe_file: str, folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    assert held_out_images(recipe_with(recipe_file, data__source=folder), 32, 4) is None
    with pytest.raises(RecipeError, match="one image"):
        held_out_images(recipe_with(recipe_file, logging__picture_source=folder), 32, 4)


@pytest.mark.parametrize("size", [32, 48, 96, 128, 432])
def test_the_second_view_is_the_first_one_moved(size: int) -> None:
    view = ViewPair.of_size(size, 16)
    images = torch.randint(0, 256, (2, 3, view.whole_px, view.whole_px), dtype=torch.uint8)
    first, second = view.of_images(images)
    assert first.shape == second.shape == (2, 3, size, size)
    moved = view.shift * 16
    assert torch.equal(second[..., : size - moved, : size - moved], first[..., moved:, moved:])
    assert 1 <= view.shift < view.patches


def test_a_teacher_of_one_size_sees_its_own_pixels() -> None:
    view = ViewPair.of_size(32, 16)
    teacher = tiny.TinyTeacher("semantic", feature_dim=4)
    images = torch.randint(0, 256, (1, 3, 320, 320), dtype=torch.uint8)
    assert torch.equal(view.of_teacher(images, teacher), view.of_images(images)[0])
    teacher.set_run_mode(RunOptions(run_mode="fixed", input_size_px=128))
    seen = view.of_teacher(images, teacher)
    assert seen.shape[-2:] == (128, 128)
    assert torch.equal(seen, ViewPair(128, view.shift * 4, 16).of_images(images)[0])


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
        self.config = RadioConfig()
        self.teachers, self.standardizers, self.pattern = teachers(), standardizers, pattern

    def forward(self, pixel_values: Tensor, adaptor_names: list[str], **_: object) -> object:
        class Output:
            features = self.teachers["semantic"].extract_features(pixel_values).features
            adaptors: dict = {}

        places = torch.linspace(0, 1, Output.features.shape[-1]).expand_as(Output.features)
        Output.features = Output.features + self.pattern * places
        for name in adaptor_names:
            output = self.teachers[name].extract_features(pixel_values)
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


WRONG = ["metrics_sizes_px=[40]", "metrics_sizes_px=[64, 16]", "metrics_sizes_px=[]", "metrics_every_steps=0"]


@pytest.mark.parametrize("setting", [*WRONG, "picture_source=nowhere"])
def test_wrong_settings_are_refused(recipe_file: str, folder: Path, setting: str) -> None:
    name = f"logging.{setting.partition('=')[0]}"
    refused(name, lambda: metrics_of(load_recipe(recipe_file, [*measured(folder), f"logging.{setting}"])), RecipeError)


# Whole runs


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that only hold what they would be drawn from."""
    monkeypatch.setattr(tracking, "draw_progress", lambda series, path: write_text(path, json.dumps(series)))


def history_of(output: str) -> list[dict]:
    return [json.loads(line) for line in Path(output, "history.jsonl").read_text(encoding="utf-8").splitlines()]


def write_labeled(folder: str) -> None:
    """Dark and bright pictures, of which some cannot be read."""
    for number in range(50):
        path = Path(folder, "bright" if number % 2 else "dark", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        color = (255, 200, 5 * number) if number % 2 else (2 * number, 8, 8)
        Image.new("RGB", (70, 50), color).save(path)
    Path(folder, "dark/broken.png").write_bytes(b"?")
    Path(folder, "dark/cut.png").write_bytes(Path(folder, "bright/49.png").read_bytes()[:-30])


@pytest.mark.parametrize("content", ["nothing", "one class"])
def test_labeled_images_are_of_several_classes(recipe_file: str, content: str) -> None:
    if content == "one class":
        write_labeled("labeled")
        shutil.rmtree("labeled/dark")
    recipe = load_recipe(recipe_file, ["logging.knn_data=labeled"])
    with pytest.raises(RecipeError, match=r"`logging\.knn_data` .*'labeled' with"):
        HeldOutNeighbors.of_run(recipe, CONFIG, Accelerator(cpu=True))


@pytest.mark.parametrize(("num_classes", "size", "kept"), [(100, 30, 48), (20, 90, 20), (60, 3, 60)])
def test_labeled_images_have_others_of_their_class(
    monkeypatch: pytest.MonkeyPatch, num_classes: int, size: int, kept: int
) -> None:
    monkeypatch.setattr(neighbors, "image_files", lambda path: [path / f"{number}" for number in range(size)])
    monkeypatch.setattr(neighbors.SkippedImages, "decode", lambda *_: Image.new("RGB", (40, 40)))
    for number in range(num_classes):
        Path("labeled", f"{number:03}").mkdir(parents=True)
    files, labels = neighbors._labeled_files(Path("labeled"))
    assert len(files) == len(set(files)) <= neighbors.MAX_IMAGES
    assert len({path.parent for path in files}) == len(set(labels)) == kept
    assert min(Counter(labels).values()) >= min(size, neighbors.NEIGHBORS + 1)


@pytest.mark.usefixtures("quick_pictures")
def test_a_stopped_run_measures_the_same_and_has_no_gap(recipe_file: str, folder: Path) -> None:
    write_labeled("labeled")
    settings = [*tiny.REGULARIZED, *measured(folder, 3), "schedule.num_steps=5", "logging.trackers=[tensorboard]"]
    settings += ["logging.knn_data=labeled", "logging.knn_every_steps=2"]
    tiny.distil(recipe_file, "blind", *settings, "logging.metrics_every_steps=null", "logging.knn_data=null")
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
    assert drawn["knn/64px"] == [[2, 4, 5], [1.0] * 3]
    for run in ("whole", "parts"):
        tiny.assert_same_tensors(tiny.last_state("blind", 5), tiny.last_state(run, 5))
    assert not Path("blind/pictures").exists()
    recorded = EventAccumulator("whole/logs").Reload()
    for name, (steps, values) in drawn.items():
        if name.endswith("px"):
            assert [event.step for event in recorded.Scalars(name)] == steps
            assert [event.value for event in recorded.Scalars(name)] == pytest.approx(values, rel=1e-5)


def test_a_run_says_and_draws_what_it_measured(
    recipe_file: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.distil(recipe_file, "run", *measured(folder), "schedule.num_steps=2", "schedule.warmup_steps=1")
    said = capfd.readouterr()
    assert "Step 2, held-out images at 32, 48 px: dense fidelity (centered) " in said.out + said.err
    assert [path.name for path in Path("run/pictures").iterdir()] == ["progress.png"]
    with Image.open("run/pictures/progress.png") as picture:
        assert min(picture.size) > 600  # three rows of panels


CPU = torch.device("cpu")


def test_an_adaptor_equal_to_its_teacher_is_drawn_alike(recipe_file: str, folder: Path) -> None:
    recipe = load_recipe(recipe_file, [f"logging.picture_source={folder}", "logging.metrics_every_steps=1"])
    teacher = tiny.TinyTeacher("semantic", feature_dim=12, summary_dim=10)
    other = tiny.TinyTeacher("segmenter", feature_dim=9, summary_dim=None)
    pictures = HeldOutFigures.of_run(recipe, {"semantic": teacher, "segmenter": other}, CPU, Path("drawn"))
    assert pictures is not None
    assert pictures.pixel_values.shape == (2, 3, 48, 48)
    answers = {
        "semantic": teacher.extract_features(pictures.pixel_values).features,
        "segmenter": other.extract_features(pictures.pixel_values).features,
    }
    with Image.open(pictures.draw(3, answers)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # The images of a teacher are above those of its adaptor.
    cell, top = CELL_INCHES * DPI, (2 * GAP_INCHES + CELL_INCHES) * DPI
    left = (2 * GAP_INCHES + LABEL_INCHES) * DPI
    columns = slice(round(left) + 8, round(left + cell) - 8)
    first, second = (pixels[round(top + shift) + 8 : round(top + shift) + 190, columns] for shift in (0, cell))
    assert np.abs(first - second).mean() < 2
    assert first.std() > 20


def test_pictures_are_of_the_partition_that_most_teachers_see(recipe_file: str, folder: Path) -> None:
    partitions = "[{name: low, sizes_px: [32, 48], teachers: [semantic]}, {name: high, sizes_px: [64]}]"
    settings = [f"partitions={partitions}", f"logging.picture_source={folder}", "logging.metrics_every_steps=1"]
    teachers = {
        "semantic": tiny.TinyTeacher("semantic", feature_dim=12, summary_dim=10),
        "segmenter": tiny.TinyTeacher("segmenter", feature_dim=9, summary_dim=None),
    }
    pictures = HeldOutFigures.of_run(load_recipe(recipe_file, settings), teachers, CPU, Path("drawn"))
    assert pictures is not None
    assert pictures.pixel_values.shape[-1] == 64
    cached = load_recipe(recipe_file, [*settings, "views.teachers=cached", "data.image_size_px=48"])
    pictures = HeldOutFigures.of_run(cached, teachers, CPU, Path("drawn"))
    assert pictures is not None
    assert pictures.pixel_values.shape[-1] == 48


@pytest.mark.parametrize(("source", "named"), [("nowhere", "`logging.picture_source`"), ("lonely", "one image")])
def test_wrong_sources_of_pictures_are_refused(recipe_file: str, folder: Path, source: str, named: str) -> None:
    Path("lonely").mkdir()
    (folder / "0.png").rename("lonely/0.png")
    settings = ["logging.metrics_every_steps=1", f"logging.picture_source={source}"]
    with pytest.raises(RecipeError, match=named):
        HeldOutFigures.of_run(load_recipe(recipe_file, settings), {}, CPU, folder)


def test_a_run_goes_on_without_pictures_that_cannot_be_written(
    recipe_file: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modeling_radio.training.distillation.held_out.MEASUREMENTS_PER_FIGURE", 1)
    Path("run").mkdir()
    Path("run/pictures").write_text("no folder", encoding="utf-8")
    settings = [
        f"logging.picture_source={folder}",
        "logging.metrics_every_steps=1",
        "schedule={num_steps: 2, warmup_steps: 1}",
    ]
    assert tiny.distil(recipe_file, "run", *settings) == Path("run/final")
    said = capfd.readouterr()
    assert "Step 1: no figure. Cannot write 'run/pictures/step-1.png': " in said.out
    assert "Step 2: no figure. Cannot write 'run/pictures/progress.png': " in said.out + said.err
