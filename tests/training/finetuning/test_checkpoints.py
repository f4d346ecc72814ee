"""Which checkpoint a run goes on from, whatever a kill or a broken disk has left."""

import json
import logging
import os

import pytest

from training.distillation.checkpoints import MANIFEST, CheckpointError, write_manifest
from training.finetuning.trainer import last_checkpoint, sealed_checkpoints


@pytest.fixture
def output(tmp_path):
    """Two sealed checkpoints, the newer of which comes first in the alphabet."""
    for step in (8, 12):
        save(tmp_path, step)
    (tmp_path / "settings.json").write_text("{}")
    return tmp_path


def save(output, step):
    folder = output / f"checkpoint-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "shards" / "0.pt").write_bytes(b"moments" * 100)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    write_manifest(folder)
    return folder


def names(output):
    return sorted(path.name for path in output.iterdir() if path.name != "settings.json")


def test_the_newest_is_that_of_the_largest_step(output):
    assert last_checkpoint(output) == str(output / "checkpoint-12")
    assert last_checkpoint(output / "missing") is None


@pytest.mark.parametrize("name", ["model.safetensors", "shards/0.pt", "trainer_state.json", MANIFEST])
@pytest.mark.parametrize("change", ["cut", "emptied", "other", "removed"])
def test_a_damaged_newest_checkpoint_is_passed_over(name, change, output, caplog):
    path = output / "checkpoint-12" / name
    content = path.read_bytes()
    changed = {"cut": content[:-1], "emptied": b"", "other": b"?" + content[1:], "removed": None}[change]
    path.unlink() if changed is None else path.write_bytes(changed)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(output) == str(output / "checkpoint-8")
    if (name, change) != (MANIFEST, "removed"):  # as after a kill, which is no damage
        assert f"{path}'" in caplog.text
        assert "checkpoint-12 is removed, and the run goes on from checkpoint-8" in caplog.text
    assert names(output) == ["checkpoint-8"]


def test_what_a_kill_left_half_written_goes(output, caplog):
    half = output / "checkpoint-16"
    half.mkdir()
    (half / "trainer_state.json").write_text("{}")
    os.unlink(output / "checkpoint-8" / MANIFEST)
    assert sealed_checkpoints(output) == [output / "checkpoint-12"]
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(output) == str(output / "checkpoint-12")
    assert names(output) == ["checkpoint-12"]
    assert not caplog.records


def test_without_an_intact_checkpoint_nothing_is_removed(output):
    for step in (8, 12):
        (output / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"")
    message = r"has no intact checkpoint: '.*checkpoint-8/model\.safetensors' has 0 bytes.*give another --output"
    with pytest.raises(CheckpointError, match=message):
        last_checkpoint(output)
    assert names(output) == ["checkpoint-12", "checkpoint-8"]


def test_other_folders_are_no_checkpoints(output):
    for name in ("checkpoint-best", "checkpoint-12-copy"):
        (output / name).mkdir()
    assert last_checkpoint(output) == str(output / "checkpoint-12")
    assert (output / "checkpoint-best").is_dir()
    assert (output / "checkpoint-12-copy").is_dir()
