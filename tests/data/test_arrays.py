"""A student of five channels of 16 bits, whose teachers see three of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_distillation import TinyTeacher, assert_same_tensors, distil, last_state
from transformers import AutoImageProcessor, AutoModel

from modeling_radio.data.arrays import measure_channels
from modeling_radio.data.settings import DataRecipe
from modeling_radio.data.training_images import build_training_images
from modeling_radio.training.distillation import inputs
from modeling_radio.training.recipes.recipe import RecipeError, load_recipe
from modeling_radio.training.student.build import check_student_views
from modeling_radio.training.views.crops import STUDENT, CropSpec, cut_crops
from modeling_radio.training.views.shapes import Grid


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

CHANNELS = 5
SETTINGS = ("schedule.num_steps=4", "checkpoints.every_steps=2", "mesa={weight: 0.5, start_step: 1}")


@pytest.fixture
def fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Settings of images that are dark, as of many sensors."""
    monkeypatch.setattr(inputs, "build_training_images", build_training_images)
    folder = tmp_path / "fields"
    (folder / "north").mkdir(parents=True)
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 65535 // 16, (CHANNELS, 40, 56), dtype=np.uint16)
        np.save(folder / "north" / f"{number}.npy", values)
    data = (
        f"{{source: {folder}, num_images: null, num_channels: {CHANNELS}, rgb_channels: [3, 1, 4], rgb_white: 0.0625}}"
    )
    return (f"data={data}", *SETTINGS)


def test_a_student_of_five_channels(
    recipe_file: str, fields: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    encode = TinyTeacher.encode
    monkeypatch.setattr(TinyTeacher, "encode", lambda self, pixels: seen.append(pixels) or encode(self, pixels))
    distil(recipe_file, "whole", *fields)
    assert {pixels.shape[1] for pixels in seen} == {3}
    assert max(pixels.max() for pixels in seen) > 0.8  # of a normalization from [0, 1] to [-1, 1]: white is 1/16
    distil(recipe_file, "stopped", *fields, stop_at=2)
    distil(recipe_file, "stopped", *fields)
    assert_same_tensors(last_state("whole", 4), last_state("stopped", 4))

    model = AutoModel.from_pretrained("whole/final").eval()
    files = sorted((tmp_path / "fields").rglob("*.npy"))
    assert (model.config.norm_mean, model.config.norm_std) == measure_channels(files, CHANNELS)
    values = np.load(files[0])
    inputs = AutoImageProcessor.from_pretrained("whole/final")(values, size=(32, 48), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, CHANNELS, 32, 48)
    assert model(inputs["pixel_values"]).features.isfinite().all()


@pytest.mark.parametrize("num_channels", [1, CHANNELS])
def test_crops_of_teachers_are_those_of_their_channels(num_channels: int) -> None:
    image, rgb = 0.3 + 0.4 * torch.rand(num_channels, 40, 56), (0, 0, num_channels - 1)
    spec = CropSpec(
        (0.5, 0.5, 0.2, 0.8), (0.5, 1.0), Grid(2, 2), True, {STUDENT: (0, 0), "teacher": (0, 0)},
        {STUDENT: ((32, 32),), "teacher": ((32, 32), (64, 64))},
    )  # fmt: skip
    views = load_recipe("demo").views
    pixels = cut_crops(image, spec, views, rgb).pixels
    assert torch.equal(pixels["teacher"][0], pixels[STUDENT][0][list(rgb)])
    assert pixels["teacher"][1].shape == (3, 64, 64)
    eight = (image[:1].repeat(3, 1, 1) * 255).byte()
    rounded = cut_crops(eight, spec, views).pixels[STUDENT][0]
    torch.testing.assert_close(pixels[STUDENT][0][0], rounded[0] / 255, atol=0.012, rtol=0)


def test_a_file_of_other_channels_is_named_before_the_run(
    recipe_file: str, fields: tuple[str, ...], tmp_path: Path
) -> None:
    np.save(tmp_path / "fields" / "four.npy", np.zeros((4, 40, 56), np.uint16))
    with pytest.raises(ValueError, match=r"`num_channels` is 5.*four\.npy"):
        distil(recipe_file, "run", *fields)
    assert not Path("run", "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (["data.streaming=true"], "data.num_channels"),
        (["data.source=demo"], "data.num_channels"),
        (["data.min_side_ratio=3"], "data.num_channels"),
        (["views.teachers=cached"], "data.num_channels"),
        (["logging.picture_source=pictures"], "data.num_channels"),
        (["data.rgb_channels=[0,1,5]"], "data.rgb_channels"),
        (["data.num_channels=null"], "data.rgb_channels"),
        (["student={preset: null, architecture: e_radio}"], "data.num_channels"),
    ],
)
def test_settings_that_know_rgb_alone(changes: list[str], name: str, recipe_file: str, fields: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match=f"`{name}`"):
        check_student_views(load_recipe(recipe_file, [*fields, *changes]))


def test_a_folder_without_arrays_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`data\.source`"):
        build_training_images(DataRecipe(source=str(tmp_path), num_channels=CHANNELS), is_square=False)
