"""What is measured of a cache's formats, on tiny teachers."""

from pathlib import Path

import pytest
import tiny_distillation as tiny
import torch

from benchmarks import feature_cache
from training.recipe import load_recipe


pytestmark = pytest.mark.usefixtures("tiny_world")


@pytest.fixture
def features(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    monkeypatch.setattr(feature_cache, "build_training_images", tiny.NoiseImages)
    return feature_cache.answer(load_recipe(recipe_file), 10)


def test_teachers_answer_in_full_precision(features: dict[str, torch.Tensor]) -> None:
    assert {name: tuple(maps.shape) for name, maps in features.items()} == {
        "semantic": (10, 4, 4, 12),
        "segmenter": (10, 4, 4, 9),
    }
    assert all((maps != maps.half().float()).any() for maps in features.values())


def test_smaller_formats_lose_more(features: dict[str, torch.Tensor], tmp_path: Path) -> None:
    rows = {}
    for name, feature_format in feature_cache.formats().items():
        (tmp_path / name).mkdir()
        rows[name] = feature_cache.measure(features, feature_format, tmp_path / name)
    assert list(rows) == ["float32", "float16", "int8"]
    errors = {name: float(str(row["semantic: error"])) for name, row in rows.items()}
    assert errors["float32"] == 0 < errors["float16"] < errors["int8"] < 0.01
    disks = [float(str(row["disk, kB per image"])) for row in rows.values()]
    assert disks[0] > disks[1] > disks[2]


def test_error_is_a_share_of_what_features_deviate_by() -> None:
    features = torch.randn(3, 2, 2, 5, generator=torch.Generator().manual_seed(0)) + 100
    mean = features.mean((0, 1, 2)).expand_as(features)
    assert feature_cache.relative_error(mean, features) == pytest.approx(1)
    assert feature_cache.relative_error(features, features) == 0
    halfway = (features + mean) / 2
    assert feature_cache.relative_error(halfway, features) == pytest.approx(0.5, rel=1e-4)  # 1 - R2 is 0.25
