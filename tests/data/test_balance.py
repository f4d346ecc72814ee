"""Balanced sampling: weights, draws, clusters, and the images that a recipe shows."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyarrow import FixedSizeListArray, array, parquet, table

from modeling_radio.data.balance import (
    MAX_PASSES,
    draw,
    fit_clusters,
    group_weights,
    nearest,
    num_copies,
    table_weights,
)
from modeling_radio.data.image_folder import ImageFolder
from modeling_radio.data.training_images import build_training_images
from modeling_radio.training.recipes.recipe import DataRecipe, RecipeError, load_recipe
from modeling_radio.training.recipes.sections import BalanceRecipe


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RADIO_CACHE", str(tmp_path / "cache"))


def test_groups_get_equal_shares():
    groups = np.repeat([0, 1, 2], [80, 15, 5])
    weights = group_weights(groups, 1.0, 100)
    np.testing.assert_allclose(np.bincount(groups, weights), 100 / 3)
    half = group_weights(groups, 0.5, 100)
    np.testing.assert_allclose(np.bincount(groups, half) / 100, np.sqrt([80, 15, 5]) / np.sqrt([80, 15, 5]).sum())


def test_no_image_is_shown_too_often_and_the_others_share_the_rest():
    groups = np.repeat([0, 1, 2], [80, 19, 1])
    weights = group_weights(groups, 1.0, 3)
    assert weights.max() == 3
    assert weights.mean() == pytest.approx(1)
    shares = np.bincount(groups, weights)
    np.testing.assert_allclose(shares, [48.5, 48.5, 3])


def test_draws_are_even_and_repeat_themselves():
    weights = group_weights(np.repeat([0, 1], [90, 10]), 1.0, 100)
    numbers = draw(weights, 7)
    assert len(numbers) == 200  # 0.56 and 5 in a pass: two passes show all
    counts = np.bincount(numbers, minlength=100)
    assert (np.abs(counts - 2 * weights) < 1).all()
    assert counts.min() == 1
    assert (draw(weights, 7) == numbers).all()
    assert (draw(weights, 8) != numbers).any()
    assert len(draw(group_weights(np.repeat([0, 1], [999, 1]), 1.0, 1e9), 7)) <= 2 * 1000
    rare = np.array([1e-9, *[1.0] * 9])
    assert len(draw(rare, 0)) == 10 * MAX_PASSES


def test_clusters_are_found_by_direction():
    centers = torch.eye(3, 16)
    vectors = centers.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 16, generator=torch.Generator().manual_seed(0))

    def clusters(scaled: torch.Tensor) -> torch.Tensor:
        return nearest(scaled, fit_clusters(scaled, 3, torch.Generator().manual_seed(1)))

    found = clusters(vectors * torch.rand(150, 1).add(0.1))
    assert [len(set(part.tolist())) for part in found.split(50)] == [1, 1, 1]
    assert len(set(found.tolist())) == 3
    assert torch.equal(found, clusters(vectors))


def features_of(folder, ids, **columns):
    (folder / "data").mkdir(parents=True)
    for name, values in columns.items():
        if not isinstance(values, list):
            columns[name] = FixedSizeListArray.from_arrays(array(values.ravel()), values.shape[1])
    parquet.write_table(table({"id": ids, **columns}), folder / "data" / "train-00000-of-00001.parquet")
    return folder


def shown(data, **values):
    """How often each of the images is shown; the red value of image n is n."""
    images = build_training_images(DataRecipe(source=str(data), num_images=None, **values), is_square=False)
    return Counter(int(images[index][0, 0, 0]) for index in range(len(images))), images


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_run_shows_rare_groups_more_often(write_source, kind, tmp_path):
    source = write_source(kind, 20)
    plain, images = shown(source)
    if kind == "folder":
        paths = ImageFolder(Path(source)).paths[::-1]  # features are found by name
        ids, numbers = [path.name for path in paths], [int(path.stem) for path in paths]
    else:
        numbers = [int(images[index][0, 0, 0]) for index in range(len(images))]
        ids = [f"train-{number:09d}" for number in range(len(numbers))]
    rare = set(sorted(numbers)[:2])
    groups = ["rare" if number in rare else "frequent" for number in numbers]
    vectors = np.array(
        [[1, 0.01 * number] if number in rare else [0.01 * number, 50] for number in numbers], np.float32
    )
    features = features_of(tmp_path / "features", ids, label=groups, summary=vectors)
    for balance in ({"column": "label"}, {"clusters": 2}):
        counts, images = shown(source, balance={"features": str(features), **balance})
        assert set(counts) == set(plain)
        total = sum(counts.values())
        assert sum(counts[number] for number in rare) / total == pytest.approx(0.5, abs=0.02)
        again = shown(source, balance={"features": str(features), **balance})[1]
        assert again.fingerprint() == images.fingerprint()
    filtered, _ = shown(source, balance={"features": str(features), "column": "label"}, filters={"max_aspect": 3.0})
    assert filtered == shown(source, balance={"features": str(features), "column": "label"})[0]
    others = features_of(tmp_path / "others", ids[:-1], label=groups[:-1])
    with pytest.raises(ValueError, match=r"`data\.balance\.features`"):
        shown(source, balance={"features": str(others), "column": "label"})
    with pytest.raises(ValueError, match=r"`data\.balance\.column` .*'nothing'"):
        shown(source, balance={"features": str(features), "column": "nothing"})


@pytest.mark.parametrize(("kind", "name"), [("parquet", "caption"), ("webdataset", "txt")])
def test_a_run_shows_images_of_a_table_by_its_weights(write_source, kind, name):
    counts, images = shown(write_source(kind, 5), balance={"weights": name})  # image n has weight n
    assert {number: count * 10 / len(images) for number, count in counts.items()} == {1: 1, 2: 2, 3: 3, 4: 4}
    with pytest.raises(ValueError, match=r"`data\.balance\.weights` .*'nothing'"):
        shown(write_source(kind, 5, first=10), balance={"weights": "nothing"})
    with pytest.raises(ValueError, match=r"`data\.balance\.weights` .*a folder"):
        shown(write_source("folder", 5), balance={"weights": name})


def test_own_weights_count_by_their_ratios_and_are_limited():
    def weights_of(*values):
        rows = SimpleNamespace(weights=lambda: [str(value) for value in values])
        return table_weights(rows, BalanceRecipe(weights="w", max_repeats=3), 0).tolist()

    assert weights_of(100, 300) == [0.5, 1.5]  # above the limit, but not as multiples of their mean
    assert weights_of(*[0.01] * 19, 10) == pytest.approx([17 / 19] * 19 + [3])
    assert weights_of(*[0] * 9, 2) == [0] * 9 + [3]
    assert weights_of(0, 0) == [0, 0]


def test_passes_show_an_image_as_often_as_its_weight_says():
    for weight in (0.1, 0.75, 1, 2.3):
        counts = np.array([[num_copies(weight, number, 0, f"{key}") for number in range(20)] for key in range(400)])
        assert (np.abs(counts - weight) < 1).all()
        assert (np.abs(counts.cumsum(1) - weight * np.arange(1, 21)) < 1 + 1e-9).all()
        assert counts.mean(0) == pytest.approx(weight, abs=0.12)  # five standard deviations
    assert any(num_copies(0.5, 0, 0, f"{key}") != num_copies(0.5, 0, 1, f"{key}") for key in range(20))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (["data.balance.weights=w"], "features"),
        (["data.balance.weights=w", "data.balance.features=null"], "column"),
        (["data.num_images=9"], "balance"),
        (["data.source=demo"], "balance"),
        (["views.teachers=cached"], "balance"),
        (["data.balance.column=null"], "column"),
        (["data.balance.power=2"], "power"),
    ],
)
def test_what_cannot_be_balanced_is_refused(recipe_file, changes, name):
    base = ["data={source: pets, num_images: null}", "data.balance={features: x, column: label}"]
    load_recipe(recipe_file, base)
    with pytest.raises(RecipeError, match=name):
        load_recipe(recipe_file, [*base, *changes])
