"""A tiny checkpoint with adaptors, images of several shapes, and a quick way to extract and to read the result."""

import numpy as np
import pytest
from PIL import Image
from tiny_adaptors import build_model_with_adaptors

from modeling_radio.extraction import run
from modeling_radio.extraction.settings import ExtractionSettings


NUM_IMAGES = 23


@pytest.fixture(autouse=True)
def _apart(one_thread: None, own_datasets_cache: None) -> None:
    """Use one thread in all tests of this folder, and a cache of `datasets` of their own."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder whose model has an adaptor with, and one without a summary."""
    folder = tmp_path_factory.mktemp("extraction") / "model"
    build_model_with_adaptors("teacher-b").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two folders of classes, images of three shapes; not to be changed."""
    folder = tmp_path_factory.mktemp("pictures") / "pets"
    for number in range(NUM_IMAGES):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, (24 + 8 * (number % 3), 32, 3), dtype=np.uint8)
        path = folder / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def settings(checkpoint, pictures, tmp_path):
    """Return a function that makes settings; a file for every 5 images."""

    def make(**values) -> ExtractionSettings:
        defaults = {"checkpoint": checkpoint, "data": str(pictures), "output": tmp_path / "out", "num_workers": 0}
        return ExtractionSettings(**(defaults | {"shard_images": 5, "batch_size": 3} | values))

    return make


@pytest.fixture
def extract(settings):
    """Return a function that extracts with some settings."""
    return lambda **values: run.extract(run.open_extraction(settings(**values)))
