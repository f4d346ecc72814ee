from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 pictures, of which the folder's rule holds out two."""
    folder = tmp_path / "pictures-to-show"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(generator.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder
