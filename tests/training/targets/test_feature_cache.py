from pathlib import Path

import pytest
import torch
from mean_colors import CPU, NUM_IMAGES, PATCH, SIDE, TEACHERS, Images, MeanColor, open_cache, recipe_with
from torch import Tensor

from foundation.interruption import Interrupted
from training.recipe import DataRecipe, RecipeError, TeacherRecipe, ViewsRecipe
from training.targets.feature_cache import (
    CacheContents,
    FeatureCache,
    TeacherAnswers,
    shard_paths,
    write_feature_cache,
)
from training.teachers.base import TeacherOutput


def test_grid_that_is_no_multiple_is_resampled() -> None:
    answers = TeacherAnswers({"odd": MeanColor(cell_px=27)}, SIDE // PATCH, CPU)  # 2 x 2 cells
    entries = answers(Images().images)
    assert entries["odd.features"].shape == (NUM_IMAGES, 5, 5, 3)
    assert entries["odd.features"].dtype == torch.float16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": DataRecipe(source="s", image_size_px=SIDE, seed=1)}, "data.seed: 0 -> 1"),
        ({"teachers": [TeacherRecipe(name="coarse", kind="k", options={"layer": 3})]}, "teachers.coarse.options"),
    ],
)
def test_stale_cache_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"))
    open_cache(recipe, tmp_path)
    for name, value in change.items():
        setattr(recipe, name, value)
    with pytest.raises(RecipeError, match=f"is stale .*{message}"):
        open_cache(recipe, tmp_path)


def test_student_may_change_under_a_cache(tmp_path: Path) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"))
    open_cache(recipe, tmp_path)
    recipe.seed, recipe.optimizer.learning_rate = 7, 1.0
    assert len(open_cache(recipe, tmp_path)) == NUM_IMAGES


def test_missing_shards_are_computed_and_others_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.targets.feature_cache.IMAGES_PER_SHARD", 2)
    monkeypatch.setattr("training.targets.feature_cache.IMAGES_PER_FORWARD", 2)
    recipe = recipe_with(ViewsRecipe(teachers="cached"))
    contents = CacheContents.of(recipe, PATCH, NUM_IMAGES)
    asked = iter([False, True])
    answers = TeacherAnswers(TEACHERS, SIDE // PATCH, CPU)
    with pytest.raises(Interrupted, match="the same command goes on"):
        write_feature_cache(tmp_path, contents, Images(), answers, should_stop=lambda: next(asked))
    first, *others = shard_paths(tmp_path, contents)
    assert first.is_file()
    assert not any(path.exists() for path in others)
    with pytest.raises(RecipeError, match="incomplete: shard_00001"):
        FeatureCache(tmp_path, contents)
    written_at = first.stat().st_mtime_ns
    cache = open_cache(recipe, tmp_path)
    assert first.stat().st_mtime_ns == written_at
    assert torch.equal(cache.images(range(NUM_IMAGES)), Images().images)


def test_folder_without_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is no feature cache"):
        FeatureCache(tmp_path, CacheContents.of(recipe_with(ViewsRecipe()), PATCH, NUM_IMAGES))


def test_full_disk_is_noticed_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("training.targets.feature_cache.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(RecipeError, match=r"needs up to .* GB, but .* 0.0 GB free"):
        open_cache(recipe_with(ViewsRecipe(teachers="cached")), tmp_path)


def test_values_beyond_float16_are_refused() -> None:
    class Huge(MeanColor):
        def forward(self, pixel_values: Tensor) -> TeacherOutput:
            return TeacherOutput(None, super().forward(pixel_values).features * 1e6)

    with pytest.raises(RecipeError, match="Teacher 'huge' gives values that float16 cannot hold"):
        TeacherAnswers({"huge": Huge()}, SIDE // PATCH, CPU)(Images().images)


def test_ranks_write_their_shares_of_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.targets.feature_cache.IMAGES_PER_SHARD", 2)
    monkeypatch.setattr("training.targets.feature_cache.IMAGES_PER_FORWARD", 2)
    recipe = recipe_with(ViewsRecipe(teachers="cached"))
    contents = CacheContents.of(recipe, PATCH, NUM_IMAGES)
    answers = TeacherAnswers(TEACHERS, SIDE // PATCH, CPU)
    written = []
    for rank in (0, 1):
        write_feature_cache(tmp_path, contents, Images(), answers, rank=rank, num_ranks=2)
        written.append([path.is_file() for path in shard_paths(tmp_path, contents)])
    assert written == [[True, False, True], [True, True, True]]
    assert torch.equal(FeatureCache(tmp_path, contents).images([5, 0]), Images().images[[5, 0]])


def test_answers_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    cache = open_cache(recipe_with(ViewsRecipe(teachers="cached")), tmp_path)
    whole = Images().images[[4, 1]].float() / 255
    for name, (summary, features) in cache.answers([4, 1]).items():
        expected = TEACHERS[name](whole)
        torch.testing.assert_close(features.float(), expected.features, atol=1e-3, rtol=0)
        assert (summary is None) == (expected.summary is None)
    assert set(cache.answers([0])) == set(TEACHERS)


def test_contents_decide_the_default_folder() -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"))
    folder = CacheContents.of(recipe, PATCH, NUM_IMAGES).default_folder()
    recipe.optimizer.learning_rate = 1.0
    assert CacheContents.of(recipe, PATCH, NUM_IMAGES).default_folder() == folder
    assert CacheContents.of(recipe, PATCH, NUM_IMAGES + 1).default_folder() != folder
