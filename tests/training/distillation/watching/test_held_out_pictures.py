from pathlib import Path

import numpy as np
import pytest
import tiny_distillation as tiny
import torch
from PIL import Image

from training.distillation.held_out import HeldOutPictures
from training.figures.features import CELL_INCHES, DPI, GAP_INCHES, TITLE_INCHES
from training.recipe import RecipeError, load_recipe


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

CPU = torch.device("cpu")


def test_an_adaptor_equal_to_its_teacher_is_drawn_alike(recipe_file: str, folder: Path) -> None:
    recipe = load_recipe(recipe_file, [f"logging.picture_source={folder}", "logging.picture_every_steps=1"])
    teacher = tiny.TinyTeacher("semantic", feature_dim=12, summary_dim=10)
    other = tiny.TinyTeacher("segmenter", feature_dim=9, summary_dim=None)
    pictures = HeldOutPictures.of_run(recipe, {"semantic": teacher, "segmenter": other}, CPU, Path("drawn"))
    assert pictures is not None
    assert pictures.pixel_values.shape == (2, 3, 48, 48)
    answers = {
        "semantic": teacher.answer(pictures.pixel_values).features,
        "segmenter": other.answer(pictures.pixel_values).features,
    }
    with Image.open(pictures.draw(3, answers)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # Titles and caption aside, cells of a teacher and its adaptor are neighbors.
    cell, left = CELL_INCHES * DPI, (2 * GAP_INCHES + CELL_INCHES) * DPI
    rows = slice(round(TITLE_INCHES * DPI) + 8, round((TITLE_INCHES + CELL_INCHES) * DPI) - 8)
    first, second = (pixels[rows, round(left + shift) + 8 : round(left + shift) + 190] for shift in (0, cell))
    assert np.abs(first - second).mean() < 2
    assert first.std() > 20


def test_pictures_are_of_the_partition_that_most_teachers_see(recipe_file: str, folder: Path) -> None:
    partitions = "[{name: low, sizes_px: [32, 48], teachers: [semantic]}, {name: high, sizes_px: [64]}]"
    settings = [f"partitions={partitions}", f"logging.picture_source={folder}", "logging.picture_every_steps=1"]
    teachers = {
        "semantic": tiny.TinyTeacher("semantic", feature_dim=12, summary_dim=10),
        "segmenter": tiny.TinyTeacher("segmenter", feature_dim=9, summary_dim=None),
    }
    pictures = HeldOutPictures.of_run(load_recipe(recipe_file, settings), teachers, CPU, Path("drawn"))
    assert pictures is not None
    assert pictures.pixel_values.shape[-1] == 64
    cached = load_recipe(recipe_file, [*settings, "views.teachers=cached", "data.image_size_px=48"])
    pictures = HeldOutPictures.of_run(cached, teachers, CPU, Path("drawn"))
    assert pictures is not None
    assert pictures.pixel_values.shape[-1] == 48


def test_no_picture_without_held_out_images(recipe_file: str, folder: Path) -> None:
    source = f"logging.picture_source={folder}"
    for settings in (
        ["logging.picture_every_steps=1"],  # the data has none
        [source, "logging.picture_every_steps=null"],
        [source, "logging.picture_every_steps=9"],  # of 8 steps
    ):
        assert HeldOutPictures.of_run(load_recipe(recipe_file, settings), {}, CPU, Path("drawn")) is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("logging.picture_source=nowhere", "`logging.picture_source` must be one of .* or a folder of images"),
        ("logging.picture_source=lonely", "has one image only.*Give another folder, or `logging.picture_every_steps"),
        ("logging.picture_every_steps=0", "`logging.picture_every_steps` must be an integer above 0, or null, got 0"),
    ],
)
def test_wrong_settings_are_refused(recipe_file: str, folder: Path, setting: str, message: str) -> None:
    Path("lonely").mkdir()
    (folder / "0.png").rename("lonely/0.png")
    with pytest.raises(RecipeError, match=message):
        HeldOutPictures.of_run(load_recipe(recipe_file, ["logging.picture_every_steps=1", setting]), {}, CPU, folder)


def test_a_run_goes_on_without_pictures_that_cannot_be_written(
    recipe_file: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("run/pictures").write_text("no folder", encoding="utf-8")
    every_step = ["logging.picture_every_steps=1", "logging.metrics_every_steps=2"]
    settings = [f"logging.picture_source={folder}", *every_step, "schedule={num_steps: 2, warmup_steps: 1}"]
    assert tiny.distil(recipe_file, "run", *settings) == Path("run/final")
    said = capfd.readouterr()
    assert "Step 1: no picture. Cannot write 'run/pictures/step-1.png': " in said.out
    assert "Step 2: no picture. Cannot write 'run/pictures/progress.png': " in said.out + said.err
