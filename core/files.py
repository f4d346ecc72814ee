"""Writing files and folders whole or not at all, and one run at a time in a folder.

Windows opens no folders. So nothing waits there until the disk has what was written, and what a killed process left of
a folder half written stays.
"""

import errno
import glob
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from modeling_radio.core.command_line import typed_command
from modeling_radio.core.errors import KILLED_WORKER, UserError, first_few, system_error


PHOTOGRAPH = Path(__file__).with_name("photograph.jpg")
"""An example image."""
TEMPORARY_PREFIX = ".partial-"
PREVIOUS_PREFIX = ".previous-"
"""Prefix of a folder that is moved aside while its successor takes its place."""
_MAX_NAMED = 4
_PRIVATE = 0o600  # of every file that safetensors writes
_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # file systems that cannot do this for folders


class WriteError(OSError):
    """A failed write; the message is one line, and the old content is intact."""


def cache_dir() -> Path:
    """Return the cache folder: `RADIO_CACHE` of the environment, else `radio` in the platform's place for caches."""
    if os.environ.get("RADIO_CACHE"):
        return Path(os.environ["RADIO_CACHE"]).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "radio" / "Cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/radio").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "radio"


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            digest.update(chunk)
    return digest.hexdigest()


class FolderKind(NamedTuple):
    """A kind of folder that a command writes as a whole, and may write again.

    Attributes:
        title: Plural noun for such folders, "sites".
        entries: Patterns of the names of all its entries. Anything else is somebody's work.
        is_one: Whether a folder is of this kind.
    """

    title: str
    entries: tuple[str, ...]
    is_one: Callable[[Path], bool]


def check_writable(path: Path) -> None:
    """Refuse a place where nothing can be written, before any long work; nothing is left there.

    Args:
        path: File or folder to be written; its folders need not exist.

    Raises:
        WriteError: If the nearest folder that exists takes no file, for example on a disk that is read-only.
    """
    folder = path if path.is_dir() else next(parent for parent in path.absolute().parents if parent.exists())
    with one_line_errors(path), tempfile.TemporaryFile(dir=folder):
        pass


def check_output(
    path: Path, *, overwrite: bool, inputs: Iterable[Path] = (), kind: FolderKind | None = None, name: str = "output"
) -> None:
    """Refuse an output that exists or whose replacement would lose something, before any long work.

    Args:
        path: File to be written, or folder.
        overwrite: Whether to replace an existing one.
        inputs: Files and folders that the command reads.
        kind: Kind of a folder: only an earlier folder of this kind may be replaced.
        name: Name of the argument, for messages.

    Raises:
        ValueError: If `path` is an input or holds one, or exists and `overwrite` is off. Of a folder also if it is or
            holds the working directory, or is neither empty nor of its kind without files of others.
        WriteError: If nothing can be written there.
    """
    restore_previous(path)
    _remove_leftovers(path)
    for each in inputs:
        if each.exists() and each.resolve().is_relative_to(path.resolve()):
            raise ValueError(
                f"`{name}` must not be or contain the input {str(each)!r}, got {str(path)!r}. Name another output."
            )
    if path.exists() and not overwrite:
        raise ValueError(f"`{name}` {str(path)!r} exists already. Name another output or pass --overwrite.")
    if path.exists() and kind is not None:
        _check_replaceable(path, kind, name)
    check_writable(path)


def _check_replaceable(path: Path, kind: FolderKind, name: str) -> None:
    """Refuse an existing folder with other entries, or with the working directory in it."""
    if not path.is_dir():
        raise ValueError(f"`{name}` must be a folder, got the file {str(path)!r}. Name another output.")
    if Path.cwd().is_relative_to(path.resolve()):
        raise ValueError(f"`{name}` must not be or hold the working directory, got {str(path)!r}. Name a new folder.")
    entries = sorted(entry.name for entry in path.iterdir())
    if entries and not kind.is_one(path):
        raise ValueError(
            f"--overwrite replaces {kind.title} only, and `{name}` {str(path)!r} is something else. Name another "
            "output, or remove that folder yourself."
        )
    strangers = [entry for entry in entries if not any(fnmatchcase(entry, pattern) for pattern in kind.entries)]
    if strangers:
        raise ValueError(
            f"--overwrite replaces {kind.title} only, and `{name}` {str(path)!r} also holds "
            f"{first_few(strangers, _MAX_NAMED)}. Move that away or name another output."
        )


def write_file(path: Path, write: Callable[[Path], object], *, overwrite: bool = True) -> None:
    """Let `write` make a temporary file beside `path`, then move it into place; nothing is left behind if it raises.

    It is on the disk before it has its name, so that not even a power cut leaves half of it there.

    Args:
        path: File to be written.
        write: Makes it, given its temporary name.
        overwrite: Whether to replace one that exists by then.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    with one_line_errors(path), scratch_folder(path.parent, _scratch_prefix(path)) as scratch:
        restore_previous(path)
        write(scratch / path.name)
        if path.exists() and not overwrite:
            raise FileExistsError(errno.EEXIST, "another process has made it meanwhile", str(path))
        move_into_place(scratch / path.name, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 as `write_file` does."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_folder(path: Path, write: Callable[[Path], object], *, overwrite: bool = True) -> None:
    """Let `write` fill a temporary folder beside `path`, then move it into place, instead of an older one there.

    Args:
        path: Folder to be written.
        write: Fills it, given its temporary name.
        overwrite: Whether to replace one that exists by then.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        write(folder)

    write_file(path, make, overwrite=overwrite)


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Like `write_file`, for a writer of several files beside each other; the named one is moved last.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    with one_line_errors(path), scratch_folder(path.parent, _scratch_prefix(path)) as scratch:
        write(scratch / path.name)
        for written in sorted(scratch.iterdir(), key=lambda each: each.name == path.name):
            move_into_place(written, path.parent / written.name)


@contextmanager
def scratch_folder(parent: Path, prefix: str = TEMPORARY_PREFIX) -> Iterator[Path]:
    """Yield a new folder in `parent` that is removed in the end; finished files in it can be moved into place."""
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=parent)))
            with suppress(FileNotFoundError):
                stack.enter_context(_lock(scratch, waits=True))
                if scratch.exists():  # else another process removed it as a leftover before it was locked
                    break
        yield scratch


@contextmanager
def _lock(folder: Path, *, waits: bool = False) -> Iterator[bool]:
    """Lock a folder until the end of the context or of the process, and yield whether that succeeded.

    Args:
        folder: The folder.
        waits: Wait for another process that has it.
    """
    if sys.platform == "win32":
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _takes_lock(descriptor, waits=waits)
    finally:
        os.close(descriptor)


def _takes_lock(descriptor: int, *, waits: bool) -> bool:
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:  # another holds it, or the file system knows no locks
        return False
    return True


def _scratch_prefix(path: Path) -> str:
    return f"{TEMPORARY_PREFIX}{path.name}-"


def _remove_leftovers(path: Path) -> None:
    remove_abandoned(path.parent, _scratch_prefix(path))


def remove_abandoned(folder: Path, prefix: str = TEMPORARY_PREFIX) -> None:
    """Remove the scratch folders of processes that were killed while they wrote; living processes lock theirs."""
    for leftover in folder.glob(f"{glob.escape(prefix)}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            with _lock(leftover) as is_free:
                if is_free:
                    shutil.rmtree(leftover, ignore_errors=True)


def move_into_place(finished: Path, path: Path) -> None:
    """Rename a finished file or folder of a scratch folder to its name, and replace an older one.

    A file is replaced in one step. An older folder is moved aside first, to a name of its own beside `path`: if the
    second step fails it comes back at once, and after a kill between the two `restore_previous` brings it back.
    A folder is never replaced by a file, nor a file by a folder.
    """
    write_through(finished)
    if not finished.is_dir() or not path.exists():
        os.replace(finished, path)
        _sync(path.parent)
        return
    if not path.is_dir():
        raise FileExistsError(errno.EEXIST, "it is a file, which no folder may replace", str(path))
    aside = _previous(path)
    path.replace(aside)
    try:
        os.replace(finished, path)
    except BaseException:
        aside.replace(path)
        raise
    _sync(path.parent)
    aside.replace(finished)  # in one step, so that a folder with the name of a previous one is always whole


def restore_previous(path: Path) -> None:
    """Bring back the folder that a process was replacing when it was killed, if there is one."""
    aside = _previous(path)
    if not aside.is_dir():
        return
    if path.exists():  # the successor is in place
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(aside, path)


def _previous(path: Path) -> Path:
    return path.parent / f"{PREVIOUS_PREFIX}{path.name}"


def write_through(path: Path) -> None:
    """Wait until a file, or a folder with its content, is on the disk, with the permissions of the umask."""
    for folder, _, names in os.walk(path):
        for name in names:
            _finish(Path(folder, name))
        _sync(Path(folder))
    if path.is_file():
        _finish(path)


def _finish(path: Path) -> None:
    if not path.is_symlink():
        if path.stat().st_mode & 0o777 == _PRIVATE:
            path.chmod(0o666 & ~_UMASK)
        _sync(path)


def _sync(path: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def remove_partial(folder: Path, prefix: str = TEMPORARY_PREFIX) -> None:
    """Clear up after a killed process: scratch folders are removed, previous folders come back."""
    for leftover in folder.glob(f"{prefix}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
    if prefix != TEMPORARY_PREFIX:
        return  # others may be at work on what else is in the folder
    for aside in folder.glob(f"{PREVIOUS_PREFIX}*"):
        restore_previous(folder / aside.name.removeprefix(PREVIOUS_PREFIX))


@contextmanager
def one_line_errors(path: Path | str) -> Iterator[None]:
    """Report in one line why something cannot be written.

    Raises:
        WriteError: In place of errors of the system, torch and safetensors.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises the second, save_file the third
        if KILLED_WORKER.match(str(error)):  # it has nothing to do with the file
            raise
        found = system_error(error)
        reason = found.strerror if found else (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WriteError(f"Cannot write {str(path)!r}: {reason}. What was saved before is intact.") from error


LOCK = ".lock"
RUN_FILE = "run.txt"
"""Holds the name of the command that began a folder, whose files it may replace and remove, and below it all of it."""


def check_run_folder(output: Path, command: str) -> None:
    """Refuse a folder that is not new, empty or begun by the same command.

    Args:
        output: Folder of a run.
        command: Name of the command, such as "radio distill".

    Raises:
        ValueError: If it holds something else.
        WriteError: If nothing can be written there.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"`output` must be a folder, got the file {str(output)!r}. Name another one.")
    check_writable(output)
    path = output / RUN_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found = lines[0].strip() if lines else None
    if found == command:
        return
    leftover = (LOCK, f"{TEMPORARY_PREFIX}{RUN_FILE}-")  # of a run that was killed as it began
    names = os.listdir(output) if output.exists() else []
    entries = sorted(name for name in names if not name.startswith(leftover))
    if not entries:
        return
    held = first_few(entries, _MAX_NAMED) if found is None else f"a run of {found[:40]!r}"
    raise ValueError(
        f"`output` must be a new folder, an empty one or one that {command} began, got {str(output)!r}, which holds "
        f"{held}. Name another one. If {command} did begin it, write {command!r} into {str(path)!r}."
    )


@contextmanager
def sole_run(output: Path, command: str | None = None) -> Iterator[None]:
    """Lock a folder, which is made if need be, against other runs; rank 0 does it for all ranks.

    The system releases the lock when the process dies, so that it is never stale.

    Args:
        output: Folder of a run.
        command: The command, whose name is written into a new folder; None where the command has its own checks.

    Raises:
        UserError: On every rank, if another process has the folder.
        ValueError: As `check_run_folder`.
    """
    from modeling_radio.core.ranks import on_first_rank  # imports torch, for which `--help` need not wait

    with ExitStack() as stack:

        def lock() -> None:
            if command is not None:
                check_run_folder(output, command)
            stack.enter_context(_locked(output))
            if command is not None and not (output / RUN_FILE).is_file():
                typed = typed_command(command)
                write_text(output / RUN_FILE, f"{command}\n" if typed is None else f"{command}\n{typed}\n")
                stack.callback(_take_back, output)

        on_first_rank(lock)
        yield


def remove_lock(lock: FileLock) -> None:
    """Remove the file of a lock that is held; whoever has opened it meanwhile tries again."""
    with suppress(PermissionError):  # Windows removes no open file
        Path(lock.lock_file).unlink(missing_ok=True)


def _take_back(output: Path) -> None:
    """Remove the file that names the command where nothing else has been written."""
    if output.is_dir() and set(os.listdir(output)) == {LOCK, RUN_FILE}:
        (output / RUN_FILE).unlink()


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"Another run is at work in {str(output)!r}. Wait until it ends or stop it, or give another --output."
        ) from error
    try:
        yield
    finally:
        remove_lock(lock)
        with suppress(OSError):  # unless it is empty
            output.rmdir()
        lock.release()
