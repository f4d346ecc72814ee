from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from mean_colors import CPU, NUM_IMAGES, PATCH, SIDE, TEACHERS, Images, MeanColor, open_cache, recipe_with
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.recipe import RecipeError, ViewsRecipe
from training.targets.feature_cache import (
    FORMATS,
    EightBits,
    FeatureFormat,
    HalfPrecision,
    TeacherAnswers,
    check_shards,
    shard_paths,
)
from training.teachers.outputs import TeacherOutput


def stored(features: Tensor, feature_format: FeatureFormat) -> Tensor:
    """What comes back of the features of a shard, which came in two batches."""
    parts = [feature_format.encode(part) for part in features.split(2)]
    entries = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    assert set(entries) == set(feature_format.entries)
    return torch.stack([feature_format.decode(entries, row).float() for row in range(len(features))])


def correlated_features(num_images: int = 5, channels: int = 12, rank: int = 3) -> Tensor:
    """Features of a low rank, on channels of very different sizes, far from zero."""
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(num_images, 4, 5, rank, generator=generator)
    mixing = torch.randn(rank, channels, generator=generator) * torch.logspace(-1, 1, channels)
    return inner @ mixing + 7


def relative_error(kept: Tensor, features: Tensor) -> float:
    return ((kept - features).norm() / features.norm()).item()


def test_half_precision_rounds_and_nothing_else() -> None:
    features = correlated_features()
    assert torch.equal(stored(features, HalfPrecision()), features.half().float())


def test_eight_bits_are_off_by_half_a_step_of_a_channel_of_an_image() -> None:
    features = correlated_features()
    kept = stored(features, EightBits())
    extent = features.amax((1, 2), keepdim=True) - features.amin((1, 2), keepdim=True)
    assert ((kept - features).abs() <= extent / 510 * 1.001).all()
    assert ((kept - features).abs() > extent / 2000).any()
    for image in range(len(features)):  # alone as among others
        assert torch.equal(stored(features[image : image + 1], EightBits())[0], kept[image])


def test_eight_bits_keep_constant_channels_and_values_beyond_float16() -> None:
    features = torch.full((2, 3, 3, 2), 1e6)
    features[..., 1] = torch.linspace(-1e30, 1e30, 9).view(3, 3)
    kept = stored(features, EightBits())
    assert torch.equal(kept[..., 0], features[..., 0])
    torch.testing.assert_close(kept[..., 1], features[..., 1], rtol=0, atol=2e30 / 510)


@pytest.mark.parametrize("name", FORMATS)
def test_a_cache_in_any_format_is_read_back(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.targets.feature_cache.IMAGES_PER_SHARD", 4)
    monkeypatch.setattr("training.targets.feature_cache.IMAGES_PER_FORWARD", 2)
    cache = open_cache(recipe_with(ViewsRecipe(teachers="cached", cache_format=name)), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("shard*")) == [f"shard_{n:05d}.safetensors" for n in (0, 1)]
    indices = [5, 0, 3]
    whole = Images().images[indices].float() / 255
    for teacher, (_, features) in cache.answers(indices).items():
        expected = TEACHERS[teacher].answer(whole).features
        error = (features.float() - expected).norm() / (expected - expected.mean()).norm()
        assert 1e-3 < error < 0.01
    assert len(cache) == NUM_IMAGES


def test_shard_without_what_its_format_needs_is_named(tmp_path: Path) -> None:
    recipe = recipe_with(ViewsRecipe(teachers="cached", cache_format="int8"))
    cache = open_cache(recipe, tmp_path)
    contents = cache.contents
    (path,) = shard_paths(tmp_path, contents)
    save_file({key: value for key, value in load_file(path).items() if key != "coarse.step"}, path)
    with pytest.raises(RecipeError, match=rf"it must hold {NUM_IMAGES} rows of .*Delete it"):
        check_shards(tmp_path, contents)


class Scaled(MeanColor):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def answer(self, pixel_values: Tensor) -> TeacherOutput:
        return TeacherOutput(None, super().answer(pixel_values).features * self.factor)


@pytest.mark.parametrize(
    ("name", "factor", "message"),
    [
        ("float16", 1e6, "values that float16 cannot hold: use `views.cache_format=int8`"),
        ("float16", float("nan"), "values that are not finite"),
        ("int8", float("inf"), "values that are not finite"),
    ],
)
def test_values_that_a_format_cannot_hold_are_refused(name: str, factor: float, message: str) -> None:
    teachers: Mapping = {"huge": Scaled(factor)}
    with pytest.raises(RecipeError, match=f"Teacher 'huge' gives {message}"):
        TeacherAnswers(teachers, SIDE // PATCH, CPU, FORMATS[name])(Images().images)
