"""Filters of whole data sets, as a recipe opens them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from photographs import flat, picture
from PIL import Image

from training.data.image_table import Images
from training.recipe import DataRecipe, RecipeError
from training.recipe_sections.filters import FiltersRecipe
from training.recipe_sections.images import SourceRecipe
from training.views.images import build_training_images


FILTERS = FiltersRecipe(min_side_ratio=1, max_aspect=3, min_deviation=2, max_distance=3)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_parquet(name: str, images: Sequence[Image.Image]) -> str:
    import datasets

    Path(name).mkdir()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": list(images)}, features=features).to_parquet(f"{name}/0.parquet")
    return name


def shapes(images: Images) -> list[tuple[int, ...]]:
    return [tuple(images[index].shape[1:]) for index in range(len(images))]


def test_what_is_left_out_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    faulty = [flat(100), picture(2, 400, 100), picture(3, 60, 40), picture(0, 90, 60)]
    source = write_parquet("mine", [picture(0), *faulty, picture(1)])
    data = DataRecipe(source=source, image_size_px=50, num_workers=0, filters=FILTERS)
    images = build_training_images(data, is_square=False)
    assert len(images) == 2
    assert shapes(images) == [(64, 96), (64, 96)]
    assert images.left_out == {"of one color": 1, "too narrow": 1, "too small": 1, "near duplicate": 1}
    assert images.short_sides().tolist() == [64, 64]
    everything = build_training_images(data.replace(filters=FiltersRecipe()), is_square=False)
    assert len(everything) == 6
    assert everything.fingerprint() in images.fingerprint() != everything.fingerprint()
    small = build_training_images(data, is_square=False, used_px=40)
    assert small.short_sides().tolist() == [64, 40, 64]
    assert build_training_images(data.replace(num_images=7), is_square=True).short_sides().tolist() == [64] * 7


def test_near_duplicates_are_found_across_sources() -> None:
    first = write_parquet("first", [picture(0), picture(1)])
    second = write_parquet("second", [picture(1, 192, 128), picture(2), picture(3)])
    data = DataRecipe(
        source=first,
        mixed_in=[SourceRecipe(source=second, weight=0.5)],
        num_workers=0,
        filters=FiltersRecipe(max_distance=3),
    )
    images = build_training_images(data, is_square=False)
    assert shapes(images) == [(64, 96)] * 3 + [(128, 192)] + [(64, 96)] * 2
    assert images.left_out == {"near duplicate": 1}
    assert images.short_sides().tolist() == [64, 64, 64, 128, 64, 64]


def test_a_source_without_an_image_left_is_an_error() -> None:
    data = DataRecipe(source=write_parquet("mine", [flat(9), flat(10)]), num_workers=0, filters=FILTERS)
    with pytest.raises(RecipeError, match=r"must leave an image of 'mine', .*: all 2 are left out \(2 too small"):
        build_training_images(data, is_square=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"source": "demo", "filters": {"max_aspect": 2}},
            "`filters` must be left out, all null, with images of the",
        ),
        (
            {"source": "x", "streaming": True, "filters": {"max_distance": 2}},
            "`filters.max_distance` must be null with `data.streaming`",
        ),
        ({"source": "x", "filters": {"max_distance": 8}}, "max_distance"),
        ({"source": "x", "filters": {"max_aspect": 0.5}}, "max_aspect"),
    ],
)
def test_filters_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        DataRecipe(**settings)
