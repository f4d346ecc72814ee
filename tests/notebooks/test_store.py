"""Running notebooks with other parameters, and what is kept of their outputs."""

from pathlib import Path

import nbformat
import pytest

from notebooks.store import ROOT, clean, code_hash, execute, read


def write(path: Path, *sources: str, tags: tuple[str, ...] = ("parameters",)) -> Path:
    """Write a notebook of these cells, the first with tags."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = list(tags)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_cleaning_keeps_what_readers_want(tmp_path):
    notebook = read(write(tmp_path / "a.ipynb", "A = 1", "A"))
    streams = [("stdout", f"in {ROOT}/docs\n"), ("stderr", "a progress bar")]
    cell = notebook.cells[1]
    cell.outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in streams]
    data = {"text/plain": f"{Path.home()}/x", "image/jpeg": "AAAA"}
    cell.outputs.append(nbformat.v4.new_output("display_data", data=data, metadata={"image/jpeg": {"width": 9}}))
    cell.metadata["execution"] = {"iopub.status.busy": "2026-11-26T07:00:00Z"}
    clean(notebook)
    nbformat.validate(notebook)
    assert [output.output_type for output in cell.outputs] == ["stream", "display_data"]
    assert cell.outputs[0].text == "in docs\n"
    assert cell.outputs[1].data == {"text/plain": "~/x", "image/jpeg": "AAAA"}
    assert not cell.outputs[1].metadata
    assert not cell.metadata
    assert notebook.cells[0].metadata.tags == ["parameters"]
    assert notebook.metadata.code == code_hash(notebook)


def test_the_hash_is_of_the_code_alone(tmp_path):
    first = read(write(tmp_path / "a.ipynb", "A = 1", "A"))
    second = read(write(tmp_path / "b.ipynb", "A = 1", "A + 1"))
    assert code_hash(first) != code_hash(second)
    first.cells.insert(0, nbformat.v4.new_markdown_cell("# A title"))
    first.cells[1].source += "  # a comment"
    assert code_hash(first) == code_hash(read(tmp_path / "a.ipynb"))


@pytest.mark.tour
def test_parameters_replace_those_of_the_notebook(tmp_path):
    pytest.importorskip("ipykernel", reason="needs the extra `dev`")
    path = write(tmp_path / "a.ipynb", "NAME = 'a'\n# OTHER = 1", "print(NAME)")
    before = path.read_bytes()
    notebook = execute(path, {"NAME": "another"}, timeout=60)
    assert notebook.cells[1].outputs[0].text == "another\n"
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["OTHER", "path"])
def test_an_unknown_parameter_is_refused_before_anything_runs(name, tmp_path):
    pytest.importorskip("nbclient", reason="needs the extra `dev`")
    path = write(tmp_path / "a.ipynb", "NAME = 'a'\n# OTHER = 1", "raise ValueError")
    with pytest.raises(ValueError, match=f"`{name}` is no parameter of the notebook, which has NAME"):
        execute(path, {name: 1})
