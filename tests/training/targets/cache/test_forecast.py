from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mean_colors import CPU, NUM_IMAGES, PATCH, SIDE, TEACHERS, Images, contents_of, recipe_with

from training.recipe import ViewsRecipe
from training.targets import feature_cache
from training.targets.feature_cache import Forecast, TeacherAnswers, size_words, time_words, write_feature_cache


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_size_and_time_are_told_before_the_first_shard(tmp_path: Path, name: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("training.targets.feature_cache.IMAGES_PER_FORWARD", 2)
    clock = iter([10.0, 40.0])
    monkeypatch.setattr(feature_cache, "time", SimpleNamespace(perf_counter=lambda: next(clock, 99.0)))
    contents = contents_of(recipe_with(ViewsRecipe(teachers="cached", cache_format=name)))
    answers = TeacherAnswers(TEACHERS, SIDE // PATCH, CPU, contents.format)
    write_feature_cache(tmp_path, contents, Images(), answers)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Feature cache" in line]
    start = f"Feature cache {str(tmp_path)!r}: 6 of 6 images are missing, 2 teachers, "
    assert line.startswith(start)
    assert line.endswith(f" in format {name!r}, about 30 seconds to go.")  # two of six images are left
    size, unit = line.removeprefix(start).split()[:2]
    assert unit == "kB"
    (shard,) = tmp_path.glob("shard*")
    assert float(size) * 1000 == pytest.approx(shard.stat().st_size, rel=0.02)


def test_a_single_batch_tells_the_size() -> None:
    contents = contents_of(recipe_with(ViewsRecipe(teachers="cached")))
    told = Forecast(Path(), contents, NUM_IMAGES)
    batch = TeacherAnswers(TEACHERS, SIDE // PATCH, CPU, contents.format)(Images().images)
    assert "about 0 seconds to go" in (told.after(batch, 0) or "")
    assert told.after(batch, 0) is None


def test_size_grows_with_images() -> None:
    contents = contents_of(recipe_with(ViewsRecipe(teachers="cached")))
    batch = {"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}
    batch |= {f"{name}.features": torch.zeros(2, 2, 2, 3, dtype=torch.float16) for name in TEACHERS}
    of_image = 3 * 8 * 8 + 2 * (2 * 2 * 3 * 2)
    for num_images in (4, 5):
        line = Forecast(Path(), contents, num_images).after(batch, 0) or ""
        assert f" {size_words(num_images * of_image)} " in line


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 seconds"), (119, "119 seconds"), (121, "2 minutes"), (9000, "2.5 hours")]
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert time_words(seconds) == words
