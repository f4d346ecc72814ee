"""Cached and online targets against what the teacher says of the student's very pixels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from foundation.interruption import Interrupted
from training.losses.mesa import mesa_loss
from training.recipe import DataRecipe, MesaRecipe, PartitionRecipe, Recipe, RecipeError, TeacherRecipe, ViewsRecipe
from training.targets.cached import CachedTargets
from training.targets.feature_cache import (
    CacheContents,
    FeatureCache,
    TeacherAnswers,
    shard_paths,
    write_feature_cache,
)
from training.targets.online import OnlineTargets
from training.teachers.base import TeacherOutput
from training.views.batches import BatchPlan


PATCH = 16
SIDE = 80
NUM_IMAGES = 6


class MeanColor(nn.Module):
    """A teacher whose features are the mean colors of cells: equivariant to whole-cell shifts and mirroring."""

    def __init__(self, cell_px: int = PATCH, has_summary: bool = True) -> None:
        super().__init__()
        self.cell_px, self.has_summary = cell_px, has_summary

    def forward(self, pixel_values: Tensor) -> TeacherOutput:
        features = nn.functional.avg_pool2d(pixel_values, self.cell_px)
        return TeacherOutput(features.mean((2, 3)) if self.has_summary else None, features)


class Images(Dataset[Tensor]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (NUM_IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def recipe_with(views: ViewsRecipe, **partition) -> Recipe:
    return Recipe(
        name="test",
        teachers=[TeacherRecipe(name="coarse", kind="k"), TeacherRecipe(name="fine", kind="k")],
        data=DataRecipe(source="s", image_size_px=SIDE, num_workers=0),
        views=views,
        partitions=[PartitionRecipe(**{"sizes_px": [48, 64], "batch_size": 4, **partition})],
    )


TEACHERS = {"coarse": MeanColor(), "fine": MeanColor(8, has_summary=False)}


def open_cache(recipe: Recipe, folder: Path) -> FeatureCache:
    contents = CacheContents.of(recipe, PATCH, NUM_IMAGES)
    answers = TeacherAnswers(TEACHERS, SIDE // PATCH, torch.device("cpu"))
    write_feature_cache(folder, contents, Images(), answers)
    return FeatureCache(folder, contents)


@pytest.mark.parametrize("windows_px", [None, [80]])
def test_cached_targets_are_exact_crops(tmp_path: Path, windows_px: list[int] | None) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"), windows_px=windows_px)
    source = CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), torch.device("cpu"))
    sizes = set()
    for batch, example in source.examples(lambda: BatchPlan(recipe, NUM_IMAGES).steps(0, 8)):
        sizes.add(batch.size_px)
        assert example.pixel_values.shape == (4, 3, batch.size_px, batch.size_px)
        cells = batch.window_px // PATCH
        assert example.targets["coarse"].features.shape == (4, 3, cells, cells)
        assert example.targets["fine"].features.shape == (4, 3, 2 * cells, 2 * cells)
        if windows_px is None:
            for name, teacher in TEACHERS.items():
                expected = teacher(example.pixel_values).features
                torch.testing.assert_close(example.targets[name].features, expected, atol=1e-3, rtol=0)
        assert example.targets["fine"].summary is None
        whole = Images().images[list(batch.indices)].float() / 255
        torch.testing.assert_close(example.targets["coarse"].summary, whole.mean((2, 3)), atol=1e-3, rtol=0)
    assert sizes == {48, 64}


def test_online_shift_says_where_the_teachers_crop_lies() -> None:
    views = ViewsRecipe(max_shift_patches=1, shift_deviation_patches=2.0)
    recipe = recipe_with(views)
    source = OnlineTargets(recipe, PATCH, Images(), TEACHERS, torch.device("cpu"))
    shifts = []
    for _, example in source.examples(lambda: BatchPlan(recipe, NUM_IMAGES).steps(0, 4)):
        student = MeanColor()(example.pixel_values).features
        target = example.targets["coarse"]
        assert target.shift is not None
        shifts.append(target.shift)
        rows = student.shape[2]
        for image, (row, col) in enumerate(target.shift.tolist()):
            overlap = student[image, :, max(row, 0) : rows + min(row, 0), max(col, 0) : rows + min(col, 0)]
            seen = target.features[image, :, max(-row, 0) : rows + min(-row, 0), max(-col, 0) : rows + min(-col, 0)]
            torch.testing.assert_close(overlap, seen)
    assert torch.cat(shifts).abs().max() == 2
    assert (example.targets["coarse"].shift != example.targets["fine"].shift).any()


def test_jitter_is_for_the_student_only() -> None:
    plain = recipe_with(ViewsRecipe(max_shift_patches=0))
    jittered = recipe_with(ViewsRecipe(max_shift_patches=0, brightness=0.5, contrast=0.5))
    (one,), (two,) = (
        [
            example
            for _, example in OnlineTargets(recipe, PATCH, Images(), TEACHERS, torch.device("cpu")).examples(
                lambda recipe=recipe: BatchPlan(recipe, NUM_IMAGES).steps(0, 1)
            )
        ]
        for recipe in (plain, jittered)
    )
    assert torch.equal(one.targets["coarse"].features, two.targets["coarse"].features)
    assert not torch.equal(one.pixel_values, two.pixel_values)


@pytest.mark.parametrize("window", [40, 96])
def test_window_that_does_not_fit_is_refused(tmp_path: Path, window: int) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"), windows_px=[window])
    with pytest.raises(RecipeError, match=f"windows that are multiples of the patch .*, got {window} px"):
        CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), torch.device("cpu"))


def test_grid_that_is_no_multiple_is_resampled() -> None:
    answers = TeacherAnswers({"odd": MeanColor(cell_px=27)}, SIDE // PATCH, torch.device("cpu"))  # 2 x 2 cells
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
    answers = TeacherAnswers(TEACHERS, SIDE // PATCH, torch.device("cpu"))
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
        TeacherAnswers({"huge": Huge()}, SIDE // PATCH, torch.device("cpu"))(Images().images)


def mesa_of(source: CachedTargets | OnlineTargets, recipe: Recipe) -> list[float]:
    """Run the mean colors as student and as average alike over the steps of a plan."""
    plan, network = BatchPlan(recipe, NUM_IMAGES), MeanColor()
    losses = []
    for _, example in source.examples(lambda: plan.steps(0, 6)):
        if example.average is None:
            continue
        student, average = (network(pixels).features for pixels in (example.pixel_values, example.average.pixel_values))
        losses.append(mesa_loss(student, average, example.average.shift).item())
    return losses


def test_moving_average_sees_another_crop_that_the_shift_explains(tmp_path: Path) -> None:
    views = {"flip_probability": 0.5, "brightness": 0.2, "contrast": 0.2}
    online = recipe_with(ViewsRecipe(teachers="online", shift_deviation_patches=2.0, **views))
    cached = recipe_with(ViewsRecipe(teachers="cached", **views))
    device = torch.device("cpu")
    sources = [
        OnlineTargets(online, PATCH, Images(), TEACHERS, device),
        CachedTargets(cached, PATCH, open_cache(cached, tmp_path), device),
    ]
    for source, recipe in zip(sources, (online, cached), strict=True):
        recipe.mesa = MesaRecipe(weight=1.0, start_step=2)
        losses = mesa_of(source, recipe)
        assert len(losses) == 4  # none before its start
        assert max(losses) < 1e-4
        shifts = [e.average.shift for _, e in source.examples(lambda r=recipe: BatchPlan(r, NUM_IMAGES).steps(2, 6))]
        assert torch.cat(shifts).any(0).all()


def test_moving_average_of_a_resized_window_is_moved_by_whole_tokens(tmp_path: Path) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached"), sizes_px=[32], windows_px=[64])
    recipe.mesa = MesaRecipe(weight=1.0)
    source = CachedTargets(recipe, PATCH, open_cache(recipe, tmp_path), torch.device("cpu"))
    # Windows of 4 cells lie at offsets 0 and 1, and 2 cells make a token: no whole token lies between them.
    assert mesa_of(source, recipe) == [0.0] * 6
