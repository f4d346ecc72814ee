"""What is timed: the same pixels from every format, with drafts and without."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data


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
    with pytest.raises(ValueError, match="`images` must be a folder with at least 16 JPEGs, got"):
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


def test_rows_say_what_drafts_are_worth(photographs: list[Path]) -> None:
    settings = data.DataBenchmark(images=photographs[0].parent, num_images=16, size=32, workers=[0], formats=["folder"])
    (row,) = data.measure(settings)
    assert list(row) == ["format", "workers", "images/s", "images/s, drafts", "difference", "size_px", "images"]
    assert torch.tensor([row["images/s"], row["images/s, drafts"], row["difference"]]).gt(0).all()
