"""A place where notebooks run: tiny random models where readers have trained ones."""

from collections.abc import Callable

import pytest

from notebooks.store import FOLDER, execute


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
