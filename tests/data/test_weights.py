"""Weights of images: draws, passes, and the images that a recipe shows."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from modeling_radio.data.settings import DataRecipe
from modeling_radio.data.training_images import build_training_images
from modeling_radio.data.weights import MAX_PASSES, draw, num_copies, weight_of
from modeling_radio.training.recipes.recipe import RecipeError, load_recipe


def test_draws_are_even_and_repeat_themselves():
    weights = np.repeat([100 / 180, 5], [90, 10])
    numbers = draw(weights, 7)
    assert len(numbers) == 200  # 0.56 and 5 in a pass: two passes show all
    counts = np.bincount(numbers, minlength=100)
    assert (np.abs(counts - 2 * weights) < 1).all()
    assert counts.min() == 1
    assert (draw(weights, 7) == numbers).all()
    assert (draw(weights, 8) != numbers).any()
    rare = np.array([1e-9, *[1.0] * 9])
    assert len(draw(rare, 0)) == 10 * MAX_PASSES


def test_passes_show_an_image_as_often_as_its_weight_says():
    for weight in (0.1, 0.75, 1, 2.3):
        counts = np.array([[num_copies(weight, number, 0, f"{key}") for number in range(20)] for key in range(400)])
        assert (np.abs(counts - weight) < 1).all()
        assert (np.abs(counts.cumsum(1) - weight * np.arange(1, 21)) < 1 + 1e-9).all()
        assert counts.mean(0) == pytest.approx(weight, abs=0.12)  # five standard deviations
    assert any(num_copies(0.5, 0, 0, f"{key}") != num_copies(0.5, 0, 1, f"{key}") for key in range(20))


def shown(data, **values):
    """How often each of the images is shown; the red value of image n is n."""
    images = build_training_images(DataRecipe(source=str(data), num_images=None, **values), is_square=False)
    return Counter(int(images[index][0, 0, 0]) for index in range(len(images))), images


@pytest.mark.parametrize(("kind", "name"), [("parquet", "caption"), ("webdataset", "txt"), ("folder", "often")])
def test_a_run_shows_images_by_their_weights(write_source, kind, name):
    source = write_source(kind, 5)
    if kind == "folder":
        rows = [f"{path.name},{int(path.stem)}" for path in Path(source).iterdir()]  # image n has weight n
        (Path(source) / "metadata.csv").write_text("\n".join(["file_name,often", *rows]))
    counts, images = shown(source, weights=name)
    everything = set(shown(source)[0])  # of a folder a part is held out
    assert set(counts) == everything - {0}
    assert all(abs(counts[n] - len(images) * n / sum(everything)) < 1 for n in everything)
    assert shown(source, weights=name)[1].fingerprint() == images.fingerprint() != shown(source)[1].fingerprint()
    with pytest.raises(ValueError, match=r"`data\.weights` .*'nothing'"):
        shown(write_source(kind, 5, first=10), weights="nothing")


@pytest.mark.parametrize("table", ["file_name,w\n000.png,1\n", "path,w\n000.png,1\n001.png,1\n", "w\n1\n1\n"])
def test_a_folder_without_a_weight_for_each_image_is_refused(write_source, table):
    source = write_source("folder", 4)
    (Path(source) / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=r"`data\.weights`"):
        shown(source, weights="w")


@pytest.mark.parametrize("text", ["", "many", None, "-1", "nan", float("inf")])
def test_weights_that_are_no_numbers_are_refused(text):
    with pytest.raises(ValueError, match=r"`data\.weights` .* for row 3"):
        weight_of(text, "row 3")


@pytest.mark.parametrize("change", ["data.num_images=9", "data.source=demo", "views.teachers=cached"])
def test_what_cannot_be_weighted_is_refused(recipe_file, change):
    base = ["data={source: pets, num_images: null, weights: w}"]
    load_recipe(recipe_file, base)
    with pytest.raises(RecipeError, match="weights`"):
        load_recipe(recipe_file, [*base, change])
