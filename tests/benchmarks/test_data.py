"""What is timed: equal pixels of all processors and formats, and what the cache's formats lose."""

from pathlib import Path

import numpy as np
import pytest
import tiny_distillation as tiny
import torch
from PIL import Image

from benchmarks import data
from benchmarks.measuring import Turns
from modeling_radio.training.recipe import load_recipe


def test_all_processors_do_equal_work() -> None:
    processors = data.build_processors(64)
    for name, images in list(data.draw_images(8).items())[1:]:
        batches = {each: call(images) for each, call in processors.items()}
        ours = batches.pop("ours")
        assert ours.shape == (len(images), 3, 64, 64), name
        assert torch.equal(ours, batches["transformers, torchvision"])
        assert torch.equal(ours, batches["transformers, torchvision, grouped"])
        for batch in batches.values():  # PIL rounds between rows and columns
            assert (ours - batch).abs().max() < 3 / 255
    row = data.processor_row(Turns({"ours": [0.1, 0.1], "timm": [0.3, 0.2]}))
    assert row == {"ours, ms": 100, "timm, ms": 250, "times as fast as timm": "2.50 (2.25 to 2.75)"}


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Twenty smooth JPEGs, each of a color of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(20):
        pixels = np.full((160 + number, 200, 3), 10 * number, np.uint8)
        pixels[:, :, 0] = np.linspace(0, 255, 200)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    return data.find_photographs(folder, 16)


def test_the_largest_images_are_taken(photographs: list[Path]) -> None:
    assert [path.stem for path in photographs] == [str(number) for number in range(19, 3, -1)]
    with pytest.raises(ValueError, match="`photographs` must be a folder with at least 16 JPEGs, got"):
        data.find_photographs(photographs[0].parent, 15)


@pytest.mark.parametrize("name", data.FORMATS)
def test_every_format_gives_all_images(photographs: list[Path], tmp_path: Path, name: str) -> None:
    write, streams = data.FORMATS[name]
    folder = tmp_path / "written"
    folder.mkdir()
    write(photographs, folder)
    levels = {}
    for drafts in (False, True):
        recipe = data.recipe_of(folder, 16, 32, streams=streams, workers=0, drafts=drafts)
        speed, seen = data.images_per_second(data.views_of(recipe, 2))
        assert speed > 0
        assert seen.shape == (16, 3, 32, 32)
        levels[drafts] = seen.float()
    blues = set((levels[False][:, 2].mean((1, 2)) / 10).round().int().tolist())
    assert len(blues) >= 14  # a folder holds two of sixteen out, and begins anew
    assert 0 < (levels[True] - levels[False]).abs().mean() < 2


@pytest.mark.usefixtures("tiny_world")
def test_smaller_formats_of_the_cache_lose_more(recipe_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "build_training_images", tiny.NoiseImages)
    features = data.compute_features(load_recipe(recipe_file), 10)
    assert {name: tuple(maps.shape) for name, maps in features.items()} == {
        "semantic": (10, 4, 4, 12),
        "segmenter": (10, 4, 4, 9),
    }
    assert all((maps != maps.half().float()).any() for maps in features.values())
    rows = {row["format"]: row for row in data.measure_formats(features)}
    errors = [float(rows[name]["semantic: error"]) for name in ("float32", "float16", "int8")]
    assert errors[0] == 0 < errors[1] < errors[2] < 0.01
    disks = [rows[name]["disk, kB per image"] for name in ("float32", "float16", "int8")]
    assert disks[0] > disks[1] > disks[2]
