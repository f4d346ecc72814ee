import json
from pathlib import Path

import pytest

from training.distillation.checkpoints import MANIFEST, find_damage, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(b"w" * 3_000_000)
    (tmp_path / "state.json").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_what_is_as_it_was_written_is_intact(folder: Path) -> None:
    assert find_damage(folder) is None
    files = json.loads((folder / MANIFEST).read_text())
    assert {name: entry["bytes"] for name, entry in files.items()} == {"weights": 3_000_000, "state.json": 2}
    (folder / "notes.txt").write_text("what a user adds harms nothing")
    assert find_damage(folder) is None


def test_one_changed_byte_is_found(folder: Path) -> None:
    with (folder / "weights").open("r+b") as file:
        file.seek(2_500_000)
        file.write(b"x")
    assert find_damage(folder) == f"'{folder / 'weights'}' has another content than was written"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"weights": 3}', '{"weights": {"bytes": 1}}'])
def test_a_manifest_that_is_none_is_damage(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    assert find_damage(folder) == f"'{folder / MANIFEST}' is not what was written"
