"""The notebooks as they are stored: outputs of this very code, small, of a run without errors, and of no machine."""

import re

import pytest
from documentation import ROOT

from notebooks.store import MAX_BYTES, code_hash, notebook_paths, read


pytest.importorskip("nbformat", reason="needs the extra `dev`")
NOTEBOOKS = [pytest.param(path, id=path.stem) for path in notebook_paths()]
MACHINE = re.compile(r"(?<![\w.$}~-])/(?:work|root|tmp|home|Users|mnt|opt)/|\\Users\\")


def outputs_of(path):
    return [output for cell in read(path).cells if cell.cell_type == "code" for output in cell.outputs]


def texts_of(output):
    texts = [output.get("text", ""), *(text for kind, text in output.get("data", {}).items() if "text/" in kind)]
    return "\n".join(texts)


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_outputs_are_of_this_code_from_top_to_bottom(path):
    notebook = read(path)
    assert notebook.metadata.get("code") == code_hash(notebook), "store the outputs: python -m notebooks.store"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_outputs_are_small_without_errors_and_of_no_machine(path):
    assert path.stat().st_size <= MAX_BYTES
    outputs = outputs_of(path)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [text for text in map(texts_of, outputs) if MACHINE.search(text) or "Traceback" in text]
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_links_and_named_files_are_there(path):
    texts = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    for text in texts:
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (path.parent / target).exists(), target
        for name in re.findall(r"`((?:docs|training|notebooks)/[\w/.]+\.md)`", text):
            assert (ROOT / name).is_file(), name
