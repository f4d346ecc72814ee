"""A place where notebooks run: tiny random models where readers have trained ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_folders import save_pictures, save_radio, save_words

from notebooks.store import FOLDER, execute


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A folder of a backbone with two adaptors."""
    return save_radio(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    """A folder with texts."""
    return save_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of two classes."""
    return save_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def printed() -> Callable[..., str]:
    """Return a function that runs a notebook with other parameters, and returns all that it printed."""

    def run(name: str, **parameters: object) -> str:
        notebook = execute(FOLDER / f"{name}.ipynb", parameters, timeout=120)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        assert any("image/jpeg" in output.get("data", {}) for output in outputs)
        texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
        return "\n".join(texts)

    return run
