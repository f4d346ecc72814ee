"""What is timed: equal pixels of all processors and formats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data
from benchmarks.measuring import Turns


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


@pytest.mark.parametrize("name", data.FORMATS)
def test_every_format_gives_all_images(photographs: list[Path], tmp_path: Path, name: str) -> None:
    write, streams = data.FORMATS[name]
    folder = tmp_path / "written"
    folder.mkdir()
    write(photographs, folder)
    recipe = data.recipe_of(folder, 16, 32, streams=streams, workers=0)
    speed, seen = data.images_per_second(data.views_of(recipe, 2))
    assert speed > 0
    assert seen.shape == (16, 3, 32, 32)
    blues = set((seen[:, 2].float().mean((1, 2)) / 10).round().int().tolist())
    assert len(blues) >= 14  # a folder holds two of sixteen out, and begins anew
