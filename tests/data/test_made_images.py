"""Images that a user's own class makes, named by its import path."""

import sys

import pytest
import torch

from modeling_radio.data.made_images import open_made_images
from modeling_radio.data.training_images import build_images, build_training_images
from modeling_radio.training.distillation.held_out import held_out_images
from modeling_radio.training.recipes.recipe import RecipeCommand, RecipeError, load_recipe
from modeling_radio.training.student.provenance import image_sources


OWN = """
import torch
from modeling_radio.data.image_table import Images
from modeling_radio.data.made_images import MadeImages


class Plain(Images):
    def __init__(self, size, num_images, level):
        self.size, self.num_images, self.level = size, num_images, level

    def __len__(self):
        return self.num_images

    def __getitem__(self, index):
        return torch.full((3, self.size, self.size), self.level, dtype=torch.uint8)

    def fingerprint(self):
        return "plain"


class PlainImages(MadeImages):
    origin = "plain colors"

    def images(self, *, size, num_images, seed, split):
        return Plain(size, num_images or 5, 100 + seed if split == "train" else 200)


PLAIN, NONE = PlainImages(), 3
"""
SOURCE = "own_images:PLAIN"


@pytest.fixture(autouse=True)
def _own_images(tmp_path, monkeypatch):
    (tmp_path / "own_images.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_images", None)


def test_own_images_are_trained_on_held_out_mixed_and_described(tmp_path, write_source):
    mixed_in = f"data.mixed_in=[{{source: {write_source('folder', 2)}, weight: 0.5}}]"
    recipe = load_recipe("demo", [f"data.source={SOURCE}", mixed_in, "data.num_images=null", "data.seed=1"])
    images = build_training_images(recipe.data, is_square=True)
    assert len(images) == 10
    assert images[0].shape == (3, recipe.data.image_size_px, recipe.data.image_size_px)
    assert {int(images[index].max()) for index in range(5)} == {101}
    shown = held_out_images(recipe, 16, 3)
    assert torch.equal(shown, torch.full((3, 3, 16, 16), 200, dtype=torch.uint8))
    assert ("plain colors", SOURCE) in [(each.origin, each.name) for each in image_sources(recipe.data)]
    assert open_made_images(SOURCE).detailed_images(size=8, num_images=2, split="train")[1].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("change", "argument"),
    [("data.min_side_ratio=2", "min_side_ratio"), ("data.weights=w", "weights")],
)
def test_what_needs_files_is_refused(change, argument):
    with pytest.raises(RecipeError, match=f"`data.*{argument}`"):
        load_recipe("demo", [f"data.source={SOURCE}", "data.num_images=null", change])


@pytest.mark.parametrize("source", ["own_images:NONE", "own_images:nothing", "own_nothing:PLAIN"])
def test_other_objects_are_refused(source):
    with pytest.raises(ValueError, match=f"`data.source` '{source}'"):
        build_images(source, size=8)


@pytest.mark.parametrize("setting", ["data: {source: %s}", "logging: {picture_source: %s}"])
def test_images_that_a_recipe_of_others_names_are_not_imported(setting, tmp_path):
    (tmp_path / "run.txt").touch()
    (tmp_path / "theirs.yaml").write_text("base: demo\n" + setting % f"'{SOURCE}'")
    command = RecipeCommand(recipe=str(tmp_path / "theirs.yaml"))
    with pytest.raises(RecipeError, match="--trust-remote-code"):
        command.load_recipe()
    assert "own_images" not in sys.modules
    assert SOURCE in str(command.replace(trust_remote_code=True).load_recipe().to_dict())
