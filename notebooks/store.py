"""Run notebooks and keep their outputs in them, without what belongs to one machine."""

from __future__ import annotations

import ast
import hashlib
import io
import sys
import tokenize
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from modeling_radio.core.command_line import Command
from modeling_radio.core.files import write_text
from modeling_radio.core.settings import Settings


if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
PARAMETERS = "parameters"
"""Tag of the cell whose values others may replace, as papermill has it."""
MAX_BYTES = 300_000
"""Largest size of a stored notebook. Our choice: it opens at once, on a host's page too."""
JPEG = "--InlineBackend.figure_formats={'jpeg'}"
"""Photographs as PNG would take several times the room."""


def notebook_paths() -> list[Path]:
    """Return all notebooks in order."""
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    """Return a notebook as nbformat has it."""
    import nbformat

    return cast("NotebookNode", nbformat.read(path, as_version=4))


def execute(
    path: Path, parameters: Mapping[str, Any] | None = None, *, folder: Path = FOLDER, timeout: float | None = None
) -> NotebookNode:
    """Run all cells in a new kernel and return the notebook with its outputs.

    Args:
        path: The notebook; it is not written.
        parameters: Values that replace those of the cell tagged `parameters`; each must have a name that it assigns.
        folder: Working folder; the notebooks' own, as Jupyter has it.
        timeout: Seconds that a cell may take; None for any time.

    Raises:
        ValueError: If no such cell assigns a name that is given.
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    from nbclient import NotebookClient

    notebook = read(path)
    if parameters:
        _replace_parameters(notebook, parameters)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        coalesce_streams=True,  # how a kernel cuts what is printed is a matter of its speed
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=[JPEG],
    )
    return client.execute()


def _replace_parameters(notebook: NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Append assignments to the cell of the parameters."""
    (cell,) = [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", [])]
    assigned = [node.targets[0] for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    known = [target.id for target in assigned if isinstance(target, ast.Name)]
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(f"`{name}` is no parameter of the notebook, which has {', '.join(known)}.")
        cell.source += f"\n{name} = {value!r}"


def clean(notebook: NotebookNode) -> None:
    """Leave what a reader wants: outputs without progress bars, warnings, times and paths of this machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "code": code_hash(notebook),
    }
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        if cell.cell_type == "code":
            cell.outputs = [_cleaned(output) for output in cell.outputs if output.get("name") != "stderr"]


def _cleaned(output: NotebookNode) -> NotebookNode:
    """Return an output with its texts cleaned, and without metadata such as the size of pictures."""
    if output.output_type == "stream":
        output.text = without_machine(output.text)
        return output
    output.metadata = {}
    output.data = {
        kind: without_machine(value) if kind.startswith("text/") else value for kind, value in output.data.items()
    }
    return output


def without_machine(text: str) -> str:
    """Return a text with lines as a terminal leaves them and without the paths of this machine."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    joined = "\n".join(lines)
    for path, short in ((f"{ROOT}/", ""), (str(ROOT), "."), (str(Path.home()), "~")):
        joined = joined.replace(path, short)
    return joined


def code_hash(notebook: NotebookNode) -> str:
    """Return a hash of the code without comments, kept with outputs to tell whether they are of this code."""
    code = "\0".join(_without_comments(cell.source) for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def _without_comments(source: str) -> str:
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    return "\n".join(lines)


class StoreSettings(Settings):
    """Notebooks to store.

    Attributes:
        names: Their names, or beginnings of these such as 03; all by default.
    """

    names: list[str] = Field(default_factory=list)


COMMAND = Command("notebooks.store", __doc__, StoreSettings)


def _store(settings: StoreSettings) -> None:
    import nbformat

    paths = [path for path in notebook_paths() if not settings.names or path.stem.startswith(tuple(settings.names))]
    if not paths:
        raise ValueError(f"`names` must be those of notebooks, got {', '.join(settings.names)}.")
    for path in paths:
        notebook = execute(path)
        clean(notebook)
        text = nbformat.writes(notebook) + "\n"
        if len(text.encode()) > MAX_BYTES:
            raise ValueError(f"{path.name} would have {len(text.encode())} bytes; at most {MAX_BYTES} are kept.")
        write_text(path, text)
        print(f"Wrote {path.relative_to(ROOT)}, {len(text.encode()) // 1000} kB.")


main = partial(COMMAND.run, _store, extra="dev")


if __name__ == "__main__":
    sys.exit(main())
