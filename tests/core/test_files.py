"""Nothing half-written is ever seen, on a full disk or after a kill; nothing is replaced unasked; one run a folder."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_radio.core import files
from modeling_radio.core.errors import UserError
from modeling_radio.core.files import (
    LOCK,
    RUN_FILE,
    WriteError,
    cache_dir,
    check_output,
    check_run_folder,
    check_writable,
    move_into_place,
    remove_abandoned,
    remove_partial,
    restore_previous,
    scratch_folder,
    sole_run,
    write_beside,
    write_file,
    write_folder,
    write_text,
)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_places_that_take_no_file_are_refused_before_long_work(final, tmp_path):
    refused = Path("/proc/run")
    for check in (check_writable, lambda path: check_output(path, overwrite=True)):
        with pytest.raises(WriteError, match=r"/proc/run"):
            check(refused)
    check_writable(tmp_path / "a" / "b.json")
    check_writable(final)
    assert (names(tmp_path), names(final)) == (["final"], ["old"])


def no_space(path: Path) -> None:
    path.with_name("half").write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_one(path: Path, name: str, **options: bool) -> None:
    write_folder(path, lambda folder: (folder / name).touch(), **options)


@pytest.fixture
def final(tmp_path):
    write_one(tmp_path / "final", "old")
    return tmp_path / "final"


def test_files_and_folders_are_replaced_whole_or_kept(final, tmp_path):
    write_one(final, "new")
    for write in (lambda folder: no_space(folder / "weights"), lambda folder: (folder / "\ud800").touch()):
        with pytest.raises((WriteError, UnicodeEncodeError)):
            write_folder(final, write)
    with pytest.raises(KeyboardInterrupt):
        write_folder(final, lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    assert names(final) == ["new"]
    write_text(tmp_path / "deep" / "recipe.yaml", "one")
    with pytest.raises(WriteError, match=r"recipe\.yaml': No space left on device"):
        write_file(tmp_path / "deep" / "recipe.yaml", no_space)
    assert (tmp_path / "deep" / "recipe.yaml").read_text() == "one"
    with pytest.raises(WriteError, match="final"):  # nor is one ever replaced by the other
        write_text(final, "text")
    with pytest.raises(WriteError, match=r"recipe\.yaml.*a file"):
        write_one(tmp_path / "deep" / "recipe.yaml", "new")
    assert (names(final), names(tmp_path / "deep"), names(tmp_path)) == (["new"], ["recipe.yaml"], ["deep", "final"])


def save_to_full_device(path: Path) -> None:
    with open("/dev/full", "wb") as file:
        torch.save({"weight": torch.zeros(10_000)}, file)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_text("text" * 10_000), ""),
        (lambda path: torch.save({"weight": torch.zeros(10_000)}, path), ""),
        (lambda path: save_file({"weight": torch.zeros(10_000)}, path), ""),
        (save_to_full_device, "No space left on device"),  # `torch.save` speaks of positions in its archive
    ],
    ids=["text", "torch.save", "safetensors", "hidden"],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_file(write, reason, tmp_path, full_disk):
    path = tmp_path / "weights"
    path.write_text("old")
    with full_disk(), pytest.raises(WriteError, match=f"^[^\n]*weights': [^\n]*{reason}[^\n]*$"):
        write_file(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["weights"]


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(work: Callable[[], object]) -> None:
    """Run in a forked process that is killed meanwhile."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("write", [write_file, write_folder, write_beside])
def test_a_killed_writer_leaves_the_old_one_and_a_folder_to_clear_away(write, final, tmp_path):
    def write_half(temporary: Path) -> None:
        (temporary / "half" if temporary.is_dir() else temporary).write_bytes(b"half")
        kill_myself()

    def write_and_check(scratch: Path) -> None:
        assert scratch.exists()
        check_output(path, overwrite=True)  # removes what the dead left, and nothing of those at work
        assert scratch.exists()

    in_a_child(lambda: write(final, write_half))
    assert names(final) == ["old"]
    assert len(names(tmp_path)) == 2
    remove_partial(tmp_path)
    assert names(tmp_path) == ["final"]
    path = tmp_path / "out[1].bin"
    (tmp_path / ".partial-other").mkdir()
    in_a_child(lambda: write(path, write_half))
    assert len(list(tmp_path.glob(".partial-out*"))) == 1
    write_file(path, lambda scratch: (scratch.write_text("whole"), write_and_check(scratch)))
    assert names(tmp_path) == [".partial-other", "final", "out[1].bin"]


@pytest.mark.parametrize("after_death", ["clear up", "write again", "ask for the name"])
def test_the_old_folder_comes_back_after_a_kill_between_the_renames(after_death, final, tmp_path):
    def replace_and_die() -> None:
        replace = os.replace
        os.replace = lambda source, target: kill_myself() if Path(target) == final else replace(source, target)
        write_one(final, "new")

    in_a_child(replace_and_die)
    assert not final.exists()
    if after_death == "write again":
        with pytest.raises(WriteError):
            write_folder(final, lambda folder: no_space(folder / "weights"))
    elif after_death == "ask for the name":
        with pytest.raises(ValueError, match="`output`"):
            check_output(final, overwrite=False)
    remove_partial(tmp_path)
    assert (names(final), names(tmp_path)) == (["old"], ["final"])


def test_a_scratch_folder_that_was_taken_for_a_leftover_is_made_anew(tmp_path, monkeypatch):
    """Another process clears up between the moment a folder is made and that when it is locked."""
    takes_lock, cleared = files._takes_lock, []

    def lock_late(descriptor, *, waits):
        if waits and not cleared:
            cleared.append(names(tmp_path))
            remove_abandoned(tmp_path)
        return takes_lock(descriptor, waits=waits)

    monkeypatch.setattr(files, "_takes_lock", lock_late)
    with scratch_folder(tmp_path) as scratch:
        assert [scratch.name] == names(tmp_path) != cleared[0]
        remove_abandoned(tmp_path)
        assert scratch.exists()
    assert names(tmp_path) == []


def test_a_killed_data_worker_is_no_fault_of_the_file(tmp_path):
    """Torch raises it from a signal handler, wherever the process is."""
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    def write(path):
        raise killed

    with pytest.raises(RuntimeError) as raised:
        write_file(tmp_path / "manifest.json", write)
    assert raised.value is killed


def test_the_old_folder_comes_back_where_the_new_one_cannot_follow(final, tmp_path, monkeypatch):
    def replace(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with scratch_folder(tmp_path) as scratch:
        (scratch / "final").mkdir()
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(Path, "replace", Path.rename)
        with pytest.raises(OSError, match="Input/output error"):
            move_into_place(scratch / "final", final)
    assert names(final) == ["old"]


def test_a_previous_folder_goes_once_its_successor_is_there_and_those_of_others_stay(final, tmp_path):
    (tmp_path / ".previous-final").mkdir()
    restore_previous(final)
    assert (names(tmp_path), names(final)) == (["final"], ["old"])
    for name in (".partial-abc", ".mine.abc", ".previous-abc"):
        (tmp_path / name).mkdir()
    (tmp_path / ".mine.lock").touch()
    remove_partial(tmp_path, ".mine.")
    assert names(tmp_path) == [".mine.lock", ".partial-abc", ".previous-abc", "final"]


def test_files_beside_come_along_and_the_named_one_last(tmp_path, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(
        "modeling_radio.core.files.os.replace", lambda a, b: moved.append(Path(b).name) or replace(a, b)
    )
    write_beside(tmp_path / "a.onnx", lambda path: (path.touch(), path.with_name("z.data").touch()))
    assert moved == ["z.data", "a.onnx"]
    assert names(tmp_path) == ["a.onnx", "z.data"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, replace = [], os.replace

    def fsync(number: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        raise OSError(errno.EINVAL, "no folders here")  # as on some file systems

    monkeypatch.setattr("modeling_radio.core.files.os.fsync", fsync)
    monkeypatch.setattr("modeling_radio.core.files.os.replace", lambda a, b: events.append("rename") or replace(a, b))

    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "weights").touch()
        (folder / "deep" / "state").touch()

    write_folder(tmp_path / "final", write)
    assert set(events[: events.index("rename")]) == {"final", "weights", "deep", "state"}
    assert events[events.index("rename") + 1 :] == [tmp_path.name]
    assert names(tmp_path / "final") == ["deep", "weights"]


@pytest.mark.parametrize("output", ["runs", "runs/source", "runs/../runs/source", "link", "other"])
def test_an_output_that_exists_or_holds_an_input_is_refused(output, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "source").touch()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"`output` .*(source|--overwrite\.$)"):
        check_output(tmp_path / output, overwrite=output != "other", inputs=[tmp_path / "runs" / "source"])
    check_output(tmp_path / "new", overwrite=False)
    check_output(tmp_path / "other", overwrite=True)


def test_what_another_process_made_meanwhile_is_not_replaced(tmp_path):
    def write_while_another_does(folder):
        write_one(tmp_path / "out", "first", overwrite=False)
        (folder / "second").touch()

    with pytest.raises(WriteError, match="out': another process"):
        write_folder(tmp_path / "out", write_while_another_does, overwrite=False)
    assert (names(tmp_path / "out"), names(tmp_path)) == (["first"], ["out"])


def test_what_is_written_is_readable_as_the_umask_says(tmp_path):
    """safetensors makes files that nobody else may read: a container's user could not open what root trained."""
    tensors = {"weight": torch.zeros(2)}
    write_folder(tmp_path / "final", lambda folder: save_file(tensors, folder / "model.safetensors"))
    write_file(tmp_path / "tool", lambda path: (path.touch(), path.chmod(0o700)))
    (tmp_path / "plain").touch()
    assert (tmp_path / "final/model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "tool").stat().st_mode & 0o777 == 0o700


# One run in a folder


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def test_a_folder_has_one_run_at_a_time_and_no_lock_afterwards(tmp_path):
    output = tmp_path / "deep" / "run"
    process = os.fork()
    if process == 0:
        with sole_run(output):
            (output / ".partial-mine").mkdir()
            (tmp_path / "ready").touch()
            wait_for(tmp_path / "done")
        os._exit(0)
    wait_for(tmp_path / "ready")
    with pytest.raises(UserError, match=r"'.*run'.* --output"), sole_run(output):
        pytest.fail("entered")
    assert (output / ".partial-mine").is_dir()
    (tmp_path / "done").touch()
    assert os.waitpid(process, 0)[1] == 0
    with sole_run(output):
        assert (output / LOCK).exists()
    with pytest.raises(ZeroDivisionError), sole_run(output):
        raise ZeroDivisionError
    assert names(output) == [".partial-mine"]


def test_a_killed_run_leaves_no_lock_even_if_its_data_workers_live_on(tmp_path):
    def hold() -> None:
        with sole_run(tmp_path / "run"):
            worker = os.fork()
            if worker == 0:
                (tmp_path / "born").touch()  # what a new process lets go of, it has by now
                time.sleep(60)
                os._exit(0)
            (tmp_path / "number").write_text(str(worker))
            while not (tmp_path / "born").exists():
                time.sleep(0.01)
            kill_myself()

    in_a_child(hold)
    try:
        assert (tmp_path / "run" / LOCK).exists()
        with sole_run(tmp_path / "run"):
            pass
        assert not (tmp_path / "run").exists()
    finally:
        os.kill(int((tmp_path / "number").read_text()), signal.SIGKILL)


def test_only_folders_that_the_command_began_are_taken(tmp_path):
    """A run replaces `final/`, and removes checkpoints and scratch folders: those of others it leaves alone."""
    for _ in range(2):
        with sole_run(tmp_path / "new", "radio distill"):
            (tmp_path / "new" / "final").mkdir(exist_ok=True)
    assert (tmp_path / "new" / RUN_FILE).read_text() == "radio distill\n"
    (tmp_path / "begun" / f".partial-{RUN_FILE}-xyz").mkdir(parents=True)
    (tmp_path / "begun" / LOCK).touch()
    check_run_folder(tmp_path / "begun", "radio distill")
    (tmp_path / "home" / "final").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, command, told in (
        ("home", "radio distill", "final"),
        ("new", "radio finetune", "'radio distill'"),
        ("file", "radio distill", "a folder"),
    ):
        with pytest.raises(ValueError, match=f"`output` .*{told}"), sole_run(tmp_path / name, command):
            pytest.fail("entered")
    assert names(tmp_path / "home") == ["final"]


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {"RADIO_CACHE": "/a", "XDG_CACHE_HOME": "/x"}, "/a"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/radio"),
        ("linux", {}, "~/.cache/radio"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "~/Library/Caches/radio"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/radio/Cache"),
        ("win32", {}, "~/AppData/Local/radio/Cache"),
    ],
)
def test_the_cache_folder_is_the_platforms(monkeypatch, platform, variables, folder):
    monkeypatch.setattr("sys.platform", platform)
    for name in ("RADIO_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(folder).expanduser()
