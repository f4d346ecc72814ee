"""Nothing half-written is ever seen, on a full disk or after a kill; and nothing is replaced unasked."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.files import (
    WriteError,
    check_output,
    move_into_place,
    remove_partial,
    restore_previous,
    scratch_folder,
    write_beside,
    write_file,
    write_folder,
    write_text,
)


def no_space(path: Path) -> None:
    path.with_name("half").write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "final"
    write_folder(path, lambda folder: (folder / "old").touch())
    write_folder(path, lambda folder: (folder / "new").touch())
    assert names(path) == ["new"]
    with pytest.raises(WriteError):
        write_folder(path, lambda folder: no_space(folder / "weights"))
    assert names(path) == ["new"]
    assert names(tmp_path) == ["final"]


def test_file_is_replaced_or_kept(tmp_path):
    path = tmp_path / "deep" / "recipe.yaml"
    write_file(path, lambda temporary: temporary.write_text("one"))
    with pytest.raises(WriteError, match=r"^Cannot write '.*recipe.yaml': No space left on device. What was saved"):
        write_file(path, no_space)
    assert path.read_text() == "one"
    assert names(path.parent) == ["recipe.yaml"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("text" * 10_000),
        lambda path: torch.save({"weight": torch.zeros(10_000)}, path),
        lambda path: save_file({"weight": torch.zeros(10_000)}, path),
    ],
    ids=["text", "torch.save", "safetensors"],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_file(write, tmp_path, full_disk):
    path = tmp_path / "weights"
    path.write_text("old")
    with full_disk(), pytest.raises(WriteError, match=r"^Cannot write '.*weights': .*intact\.$") as raised:
        write_file(path, write)
    assert "\n" not in str(raised.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["weights"]


def test_the_systems_words_are_found_behind_another_error(tmp_path):
    """`torch.save` speaks of positions in its archive."""

    def write(path: Path) -> None:
        with open("/dev/full", "wb") as file:
            torch.save({"weight": torch.zeros(10_000)}, file)

    with pytest.raises(WriteError, match=r"^Cannot write '.*weights': No space left on device\. What was saved"):
        write_file(tmp_path / "weights", write)


@pytest.mark.parametrize("write", [write_file, write_folder, write_beside])
def test_a_killed_writer_leaves_the_old_one_and_a_folder_to_clear_away(write, tmp_path):
    path = tmp_path / "saved"
    write_folder(path, lambda folder: (folder / "old").touch())

    def write_half(temporary: Path) -> None:
        (temporary / "half" if temporary.is_dir() else temporary).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        write(path, write_half)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert names(path) == ["old"]
    assert len(names(tmp_path)) == 2
    remove_partial(tmp_path)
    assert names(tmp_path) == ["saved"]


def test_other_errors_pass_and_leave_nothing(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "README.md", "\ud800")
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "final", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    assert names(tmp_path) == []


def test_files_beside_come_along_and_the_named_one_last(tmp_path, monkeypatch):
    moved = []
    replace = os.replace
    monkeypatch.setattr("core.files.os.replace", lambda a, b: moved.append(Path(b).name) or replace(a, b))

    def write(path: Path) -> None:
        path.write_text("graph")
        path.with_name("z.data").write_text("weights")

    write_beside(tmp_path / "a.onnx", write)
    assert moved == ["z.data", "a.onnx"]
    assert names(tmp_path) == ["a.onnx", "z.data"]


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    write_folder(tmp_path / "runs", lambda folder: (folder / "old").touch())
    with pytest.raises(WriteError, match="Cannot write"):
        write_text(tmp_path / "runs", "text")
    assert names(tmp_path / "runs") == ["old"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_follow(tmp_path, monkeypatch):
    path = tmp_path / "final"
    write_folder(path, lambda folder: (folder / "old").touch())

    def replace(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with scratch_folder(tmp_path) as scratch:
        (scratch / "final").mkdir()
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(Path, "replace", Path.rename)
        with pytest.raises(OSError, match="Input/output error"):
            move_into_place(scratch / "final", path)
    assert names(path) == ["old"]


def killed_between_the_renames(path: Path) -> None:
    """Replace a folder in a process that is killed when the old one has stepped aside and the new one has not come."""
    write_folder(path, lambda folder: (folder / "old").touch())
    child = os.fork()
    if child == 0:
        replace = os.replace

        def replace_or_die(source: Path, target: Path) -> None:
            if Path(target) == path:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = replace_or_die
        write_folder(path, lambda folder: (folder / "new").touch())
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not path.exists()


@pytest.mark.parametrize("after_death", ["clear up", "write again", "ask for the name"])
def test_the_old_folder_comes_back_after_a_kill_between_the_renames(after_death, tmp_path):
    path = tmp_path / "final"
    killed_between_the_renames(path)
    if after_death == "clear up":
        remove_partial(tmp_path)
    elif after_death == "write again":
        with pytest.raises(WriteError):
            write_folder(path, lambda folder: no_space(folder / "weights"))
        remove_partial(tmp_path)
    else:
        with pytest.raises(ValueError, match="exists already"):
            check_output(path, overwrite=False)
        remove_partial(tmp_path)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["final"]


def test_a_previous_folder_goes_once_its_successor_is_there(tmp_path):
    for name in ("final", ".previous-final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    restore_previous(tmp_path / "final")
    assert names(tmp_path) == ["final"]
    assert names(tmp_path / "final") == ["final"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(
        "core.files.os.fsync", lambda number: events.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
    )
    replace = os.replace
    monkeypatch.setattr("core.files.os.replace", lambda a, b: events.append("rename") or replace(a, b))

    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "weights").touch()
        (folder / "deep" / "state").touch()

    write_folder(tmp_path / "final", write)
    assert set(events[: events.index("rename")]) == {"final", "weights", "deep", "state"}
    assert events[events.index("rename") + 1 :] == [tmp_path.name]


def test_a_folder_where_folders_cannot_be_synced_is_written_all_the_same(tmp_path, monkeypatch):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("core.files.os.fsync", fsync)
    write_folder(tmp_path / "final", lambda folder: (folder / "new").touch())
    assert names(tmp_path / "final") == ["new"]


def test_a_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(WriteError, match="it is a file, which no folder may replace"):
        write_folder(tmp_path / "notes", lambda folder: (folder / "new").touch())
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("output", ["runs", "runs/source", "runs/../runs/source", "link"])
def test_an_output_that_is_or_holds_an_input_is_refused(output, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "source").touch()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    with pytest.raises(ValueError, match=r"`output` must not be or hold what is read, .*source"):
        check_output(tmp_path / output, overwrite=True, inputs=[tmp_path / "runs" / "source"])


def test_scratch_folders_of_others_stay(tmp_path):
    for name in (".partial-abc", ".mine.abc", ".previous-abc"):
        (tmp_path / name).mkdir()
    (tmp_path / ".mine.lock").touch()
    remove_partial(tmp_path, ".mine.")
    assert names(tmp_path) == [".mine.lock", ".partial-abc", ".previous-abc"]


def test_an_output_that_exists_needs_overwrite(tmp_path):
    check_output(tmp_path / "new", overwrite=False)
    check_output(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match=r"exists already. Name another output or pass --overwrite\.$"):
        check_output(tmp_path, overwrite=False)


def test_what_another_process_made_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "out"

    def write_while_another_does(folder):
        write_folder(path, lambda other: (other / "first").touch(), overwrite=False)
        (folder / "second").touch()

    with pytest.raises(WriteError, match=r"'.*out': another process has made it meanwhile"):
        write_folder(path, write_while_another_does, overwrite=False)
    assert names(path) == ["first"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("write", [write_file, write_beside])
def test_what_a_killed_process_left_is_removed_and_what_one_at_work_holds_is_kept(write, tmp_path):
    path = tmp_path / "out[1].bin"

    def be_killed(scratch):
        scratch.write_text("half")
        os._exit(1)

    def write_and_check(scratch):
        scratch.write_text("whole")
        check_output(path, overwrite=True)
        assert scratch.exists()

    (tmp_path / ".partial-other").mkdir()
    process = os.fork()
    if process == 0:
        write(path, be_killed)
    os.waitpid(process, 0)
    assert len(list(tmp_path.glob(".partial-out*"))) == 1
    write(path, write_and_check)
    assert {each.name for each in tmp_path.iterdir()} == {"out[1].bin", ".partial-other"}


def test_what_is_written_is_readable_as_the_umask_says(tmp_path):
    """safetensors makes files that nobody else may read: a container's user could not open what root trained."""
    tensors = {"weight": torch.zeros(2)}
    write_folder(tmp_path / "final", lambda folder: save_file(tensors, folder / "model.safetensors"))
    write_file(tmp_path / "one.safetensors", lambda path: save_file(tensors, path))
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    for name in ("final/model.safetensors", "one.safetensors"):
        assert (tmp_path / name).stat().st_mode == usual
    write_file(tmp_path / "tool", lambda path: (path.touch(), path.chmod(0o700)))
    assert (tmp_path / "tool").stat().st_mode & 0o777 == 0o700
