from pathlib import Path

import pytest
import torch
from PIL import Image

from training.data.training_images import build_images
from training.distillation.held_out import describe_lack, held_out_images, held_out_source
from training.recipe import Recipe, RecipeError, load_recipe


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
    with pytest.raises(RecipeError, match=r"^`logging.picture_source` must be images that are not trained on"):
        held_out_source(recipe_with(recipe_file, **streamed, logging__picture_source=folder))
    mixed_in = f"[{{source: {folder}, weight: 0.5}}]"
    mixed = {**streamed, "data": f"{{source: a/b, num_images: null, streaming: true, mixed_in: {mixed_in}}}"}
    with pytest.raises(RecipeError, match="all of which are streamed"):
        held_out_source(recipe_with(recipe_file, **mixed, logging__picture_source=folder))
    (folder / "inner").mkdir()
    for same in (f"{folder}/", folder / "inner", folder / ".." / folder.name):
        with pytest.raises(RecipeError, match="all of which are streamed"):
            held_out_source(recipe_with(recipe_file, **streamed, logging__picture_source=same))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert held_out_source(recipe_with(recipe_file, **streamed, logging__picture_source=elsewhere)) == str(elsewhere)


def test_a_run_whose_data_holds_out_no_images_says_so(recipe_file: str, folder: Path) -> None:
    measured = {"logging__metrics_every_steps": 2}
    line = describe_lack(recipe_with(recipe_file, **measured))
    assert line.startswith("No held-out images in `data.source` 'noise'")
    assert "set `logging.picture_source`" in line
    assert describe_lack(recipe_with(recipe_file, logging__picture_every_steps=8)) == line
    assert describe_lack(recipe_with(recipe_file)) == ""  # none are asked for within its few steps
    assert describe_lack(recipe_with(recipe_file, **measured, logging__picture_source=folder)) == ""


def test_images_are_spread_over_those_held_out(recipe_file: str, tmp_path: Path) -> None:
    folder = tmp_path / "grays"
    folder.mkdir()
    for number in range(100):
        Image.new("RGB", (40, 40), (number, number, number)).save(folder / f"{number:03}.png")
    recipe = recipe_with(recipe_file, data__source=folder)
    every = build_images(str(folder), size=32, split="held_out")
    assert len(every) == 10
    chosen = held_out_images(recipe, 32, 4, "logging.picture_every_steps")
    assert chosen is not None
    assert chosen.shape == (4, 3, 32, 32)
    assert torch.equal(chosen, torch.stack([every[index] for index in (0, 2, 5, 7)]))
    everything = held_out_images(recipe, 32, 99, "logging.picture_every_steps")
    assert everything is not None
    assert len(everything) == 10


def test_a_folder_of_one_image_holds_none_out(recipe_file: str, folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    assert held_out_images(recipe_with(recipe_file, data__source=folder), 32, 4, "a.b") is None
    with pytest.raises(RecipeError, match=r"has one image only.*Give another folder, or `a.b=null`"):
        held_out_images(recipe_with(recipe_file, logging__picture_source=folder), 32, 4, "a.b")
