"""Exports that are killed at any change of files: the output is the old or the new one, whole, and nothing is left."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import is_killed
from reference_cases import REFERENCE

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.convert import main as from_nvidia
from modeling_radio.conversion.graphs.files import remove_stale_weights
from modeling_radio.conversion.to_nvidia import main as to_nvidia
from modeling_radio.conversion.to_onnx import export_onnx, save_onnx
from modeling_radio.core.files import check_output, write_beside


pytestmark = pytest.mark.usefixtures("one_thread")
CASES = ("c_radio_v4_tiny", "c_radio_v3_tiny")


def convert(case: str, output: Path) -> None:
    assert from_nvidia([str(REFERENCE / case / "checkpoint.pth.tar"), str(output), "--overwrite"]) == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two converted models."""
    parent = tmp_path_factory.mktemp("models")
    for case in CASES:
        convert(case, parent / case)
    return [parent / case for case in CASES]


def fingerprint(path: Path) -> str:
    """Return hashes of all that a file or a folder holds; archives are compared by their tensors."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    content = [(str(file.relative_to(path.parent)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return str(content)


def kill_and_finish(
    exports: list[Callable[[Path], object]], folder: Path, name: str, num_kills: int, num_changes: int
) -> None:
    """Replace an old output by a new one, killed again and again; both are known from undisturbed exports.

    Args:
        exports: Two, with different outputs.
        folder: Where they write.
        name: Name of the output.
        num_kills: Number of kills, one after the other.
        num_changes: Changes of files that an export makes at least; a kill comes at any of them.
    """
    known = []
    for number, export in enumerate(exports):
        export(folder / str(number) / name)
        known.append(fingerprint(folder / str(number) / name))
    output, draw = folder / "killed" / name, random.Random(0)
    exports[0](output)
    for number in range(num_kills):
        export = exports[(number + 1) % 2]
        before = set(output.parent.iterdir())
        assert is_killed(
            lambda export=export: export(output),
            lambda before=before: bool(set(output.parent.iterdir()) - before),
            draw.randrange(num_changes),
        )
        check_output(output, overwrite=True)  # as the next run begins
        assert fingerprint(output) in known
        assert [each.name for each in output.parent.iterdir()] == [name]
    exports[1](output)
    assert fingerprint(output) == known[1]
    assert [each.name for each in output.parent.iterdir()] == [name]


KILLS = pytest.mark.parametrize("num_kills", [1, pytest.param(10, marks=pytest.mark.slow)])


@KILLS
def test_conversion_from_nvidia(num_kills, tmp_path):
    exports = [lambda output, case=case: convert(case, output) for case in CASES]
    kill_and_finish(exports, tmp_path, "out", num_kills, 90)


@KILLS
def test_conversion_to_nvidia(num_kills, folders, tmp_path):
    exports = [lambda output, folder=folder: to_nvidia([str(folder), str(output), "--overwrite"]) for folder in folders]
    kill_and_finish(exports, tmp_path, "out.pth.tar", num_kills, 2)


@pytest.mark.slow
def test_onnx_with_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    """After a kill between its two files the older graph goes on with its own weights."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("modeling_radio.conversion.graphs.files.EXTERNAL_DATA_BYTES", 0)
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=1)
    exported = [export_onnx(RadioModel(config).eval())[1] for _ in range(2)]
    output, draw = tmp_path / "out.onnx", random.Random(0)

    def write(number: int) -> None:
        write_beside(output, lambda path: save_onnx(exported[number], path))
        remove_stale_weights(output)

    def weights() -> str:
        tensors = sorted(onnx.load(output).graph.initializer, key=lambda tensor: tensor.name)
        return hashlib.sha256(b"".join(tensor.raw_data for tensor in tensors)).hexdigest()

    known = []
    for number in (1, 0):
        write(number)
        known.append(weights())
    assert known[0] != known[1]
    for number in range(10):
        before = set(tmp_path.iterdir())
        assert is_killed(
            lambda number=number: write(number % 2),
            lambda before=before: bool(set(tmp_path.iterdir()) - before),
            draw.randrange(4),
        )
        assert weights() in known
    check_output(output, overwrite=True)
    write(1)
    assert weights() == known[0]
    assert len(list(tmp_path.iterdir())) == 2
