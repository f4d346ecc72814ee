"""Manifests: sizes and hashes of a folder's files, so that damage is found, and the error of damaged checkpoints."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from modeling_radio.core.errors import UserError
from modeling_radio.core.files import write_text


MANIFEST = "manifest.json"
_BLOCK = 1 << 20  # bytes read at once


class FileFacts(TypedDict):
    """Size and hash of a file, as a manifest has them."""

    bytes: int
    sha256: str


def write_manifest(folder: Path, known: Mapping[str, FileFacts] | None = None) -> None:
    """Write `manifest.json`: the size and the SHA-256 of every other file of a folder and of those in it.

    Args:
        folder: Whole but for its manifest.
        known: Results of `describe_files` for some of its files, which are not read again.
    """
    known = known or {}
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = {path.relative_to(folder).as_posix() for path in paths}
    files = {**known, **describe_files(folder, names - known.keys())}
    write_text(folder / MANIFEST, json.dumps(dict(sorted(files.items())), indent=2))


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, FileFacts]:
    """Return what the manifest says of files of a folder, by name."""
    names = list(names)
    with ThreadPoolExecutor() as pool:  # hashing releases Python's lock
        hashes = pool.map(_sha256, [folder / name for name in names])
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256}
        for name, sha256 in zip(names, hashes, strict=True)
    }


def find_damage(folder: Path) -> str | None:
    """Return which file of a folder isn't as it was when `write_manifest` saw it, and how; None if all are.

    Sizes are compared before any file is read.
    """
    files = _read_manifest(folder / MANIFEST)
    if isinstance(files, str):
        return files
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{str(path)!r} is missing"
        if (now := path.stat().st_size) != size:
            return f"{str(path)!r} has {now} bytes instead of {size}"
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_sha256, [folder / name for name in files])
    for (name, (_, sha256)), now in zip(files.items(), hashes, strict=True):
        if now != sha256:
            return f"{str(folder / name)!r} has another content than was written"
    return None


def _read_manifest(path: Path) -> dict[str, tuple[int, str]] | str:
    """Return size and hash by file name, or what is wrong with the manifest itself."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))
        return {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{str(path)!r} is missing"
    except (ValueError, TypeError, KeyError, AttributeError):  # not UTF-8, not JSON, or of another form
        return f"{str(path)!r} is not what was written"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line that names the file and says what to do."""

    @classmethod
    def of_all(cls, folder: Path, damages: Iterable[str]) -> "CheckpointError":
        """Return the error of a run whose checkpoints are all damaged, as `damages` say."""
        return cls(
            f"{str(folder)!r} has no intact checkpoint: {'; '.join(damages)}. Restore these files from a copy, or "
            "give another --output to start anew."
        )
