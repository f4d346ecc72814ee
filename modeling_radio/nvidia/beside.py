"""Adaptors that NVIDIA's folders lack: they are taken from the training file (`.pth.tar`) of the same release.

What is converted is kept in the assets of the Hub's cache, under the training file's commit, so that the next start
reads small files alone.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, cached_assets_path, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import WeakFileLock
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, cached_file

from modeling_radio.checks_radio import check_choice, own_name, read_json

from .arguments import check_hub_config
from .config import BESIDE, is_nvidia_config
from .keys import our_keys
from .releases import HUB_RELEASES
from .sizes import adaptor_names
from .source import PICKLES, read_checkpoint
from .stored_tensors import INDEX, StoredTensor, stored_tensors
from .training_archive import check_sums_of
from .translation import build, translate, translate_adaptor


_LIBRARY = "modeling-radio"
_DOWNLOAD = ("cache_dir", "local_files_only", "token")
_UNREACHED = (OSError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled)
_logger = logging.getLogger(__name__)


class Archive(NamedTuple):
    """A training file.

    Attributes:
        path: The file; None where it has not been fetched.
        repository: Its repository on the Hub; None of a local file.
        name: Name of the file.
        revision: Commit or branch of the repository.
    """

    path: Path | None
    repository: str | None
    name: str
    revision: str | None


def is_training_file(source: Any) -> bool:
    """Return whether something names a training file of NVIDIA's on this machine."""
    return str(source).endswith(PICKLES) and Path(source).is_file()


def fetch_archive(repository: str, name: str) -> Path:
    """Return a training file of a repository in the Hub's cache; its size and license are shown before it is fetched.

    Raises:
        ValueError: If it cannot be had; the message says where to get it.
    """
    archive = Archive(None, repository, name, None)
    return _download(archive._replace(revision=_commit_of(archive, {})), {})


def folder_of_archive(path: str | Path, version: str | None = None) -> Path:
    """Return a folder of ours with everything that a training file holds; it is converted once.

    Args:
        path: The file.
        version: The release; None recognizes it.

    Raises:
        ValueError: If the file is damaged, of no release that can be told from others, or there is no space.
    """
    path = Path(path)
    folder = _assets(path.name, _identity(path))
    name = "whole" if version is None else f"whole-{version}".replace("/", "-")
    return _kept(
        folder / name, lambda new: build(translate(read_checkpoint(path), version=version)).save_pretrained(new)
    )


def folder_with_adaptors(
    source: str | Path,
    names: Sequence[str],
    location: Mapping[str, Any] | None = None,
    *,
    argument: str = "adaptor_names",
) -> str | Path:
    """Return a folder in NVIDIA's layout that has some adaptors beside its own; the source itself if it has all.

    Args:
        source: A folder or a name on the Hub; what is not in NVIDIA's layout is returned as it is.
        names: Adaptors that a caller asks for.
        location: Where transformers shall look for a name, such as a `revision`.
        argument: Name of the argument with the names, for messages.

    Raises:
        ValueError: If the release has no such adaptor, or its training file cannot be had; the message says where to
            get it and where to put it.
    """
    location = {name: value for name, value in (location or {}).items() if value is not None}
    root = root_of(source, location)
    config = {} if root is None else read_json(root / CONFIG_NAME)
    if root is None or not is_nvidia_config(config):
        return source
    check_hub_config(config, str(root / CONFIG_NAME))
    own = _own_adaptors(config)
    known = list(dict.fromkeys([*own, *(teacher["name"] for teacher in config["args"]["teachers"])]))
    wanted = [own_name(name, known) for name in names]  # who builds the adaptors warns of another name
    for name in wanted:
        check_choice(argument, name, known)
    missing = [name for name in wanted if name not in own]
    if not missing:
        return source
    archive = _find_archive(root, config, str(source))
    files = [_adaptor_file(archive, name, location) for name in missing]
    key = hashlib.sha256(json.dumps([str(root.resolve()), *map(str, files)]).encode()).hexdigest()[:16]
    folder = _assets("folders", key)
    return _kept(folder / "joined", lambda new: _join(new, stored_tensors(source, location), root, config, files))


def folder_with_all_adaptors(source: str | Path) -> str | Path:
    """Return a folder in NVIDIA's layout with all adaptors of its training file; without that file the source itself.

    Args:
        source: A folder; what is not in NVIDIA's layout is returned as it is. Of a repository whose file cannot be
            fetched a warning says so.
    """
    lacking = adaptors_lacking(source)
    root = root_of(source, {})
    if not lacking or root is None:
        return source
    try:
        archive = _find_archive(root, read_json(root / CONFIG_NAME), str(source))
        path = archive.path or _download(archive._replace(revision=archive.revision or _commit_of(archive, {})), {})
    except ValueError as error:
        if _snapshot(root) is not None:
            warnings.warn(f"Without the adaptors {lacking}. {error}", stacklevel=2)
        return source
    checkpoint = read_checkpoint(path, with_sums=False)
    teachers = [teacher["name"] for teacher in checkpoint.args["teachers"]]
    found = adaptor_names(our_keys(checkpoint.state, teachers).values(), checkpoint)
    return folder_with_adaptors(source, [name for name in found if name in lacking])


def adaptors_lacking(source: str | Path) -> list[str]:
    """Return the teachers whose adaptors a folder in NVIDIA's layout lacks; none of another folder."""
    root = root_of(source, {})
    config = {} if root is None else read_json(root / CONFIG_NAME)
    if root is None or not is_nvidia_config(config):
        return []
    check_hub_config(config, str(root / CONFIG_NAME))
    teachers = [teacher["name"] for teacher in config["args"]["teachers"]]
    return [name for name in dict.fromkeys(teachers) if name not in _own_adaptors(config)]


def _own_adaptors(config: Mapping[str, Any]) -> list[str]:
    return [*(config.get("adaptor_configs") or {}), *(adaptor["name"] for adaptor in config.get(BESIDE) or [])]


def root_of(source: str | Path, location: Mapping[str, Any]) -> Path | None:
    """Return the local folder of a source, fetched as far as its configuration; None where it has none."""
    try:
        found = cached_file(str(source), CONFIG_NAME, **location)
    except (OSError, ValueError):
        return None  # transformers will say what is missing
    return None if found is None else Path(found).parent


def _find_archive(root: Path, config: Mapping[str, Any], source: str) -> Archive:
    """Return the training file of a release: in the folder, or where NVIDIA's code looks for it."""
    local = sorted(file for ending in PICKLES for file in root.glob(f"*{ending}"))
    named = _named_archive(str(config.get("version")))
    snapshot = _snapshot(root)
    if snapshot is None:
        by_name = [file for file in local if named is not None and file.name == named[1]]
        if len(local) == 1 or by_name:
            return Archive((by_name or local)[0], None, (by_name or local)[0].name, None)
        what = "the release's .pth.tar" if named is None else f"{named[1]} of {named[0]}"
        raise ValueError(
            f"{source!r} lacks the adaptors that are asked for: put {what} into this folder"
            + ("." if named is None else f" (`hf download {named[0]} {named[1]} --local-dir {source}`).")
        )
    repository, commit = snapshot
    if named is not None:
        return Archive(None, *named, commit if named[0] == repository else None)
    return Archive(None, repository, _listed_archive(repository, commit), commit)


def _named_archive(version: str) -> tuple[str, str] | None:
    """Return repository and name of the training file of a release of NVIDIA's."""
    release = HUB_RELEASES.get(version)
    repository = None if release is None else release.archive_in or release.repository
    return None if release is None or release.archive is None or repository is None else (repository, release.archive)


def _snapshot(root: Path) -> tuple[str, str] | None:
    """Return repository and commit of a folder in the Hub's cache."""
    kind, *parts = root.parent.parent.name.split(constants.REPO_ID_SEPARATOR)
    if root.parent.name != "snapshots" or kind != "models" or not parts:
        return None
    return "/".join(parts), root.name


def _listed_archive(repository: str, revision: str) -> str:
    try:
        files = HfApi(endpoint=constants.ENDPOINT).list_repo_files(repository, revision=revision)
    except _UNREACHED as error:
        raise ValueError(_unreached(repository, "its .pth.tar", error)) from error
    found = [file for file in files if file.endswith(PICKLES)]
    if len(found) != 1:
        raise ValueError(
            f"{repository!r} must have one training file (.pth.tar) for adaptors that its weights lack, "
            f"got {len(found)}."
        )
    return found[0]


def _adaptor_file(archive: Archive, name: str, location: Mapping[str, Any]) -> Path:
    """Return the file with the weights of one adaptor, and its configuration in the metadata."""
    options = {key: location[key] for key in _DOWNLOAD if key in location}
    if archive.path is not None:
        folder = _assets(archive.name, _identity(archive.path))
    else:
        revision = archive.revision or _commit_of(archive, options)
        archive = archive._replace(revision=revision)
        folder = _assets(f"{archive.repository}--{archive.name}", revision)

    def write(new: Path) -> None:
        path = archive.path or _download(archive, options)
        checkpoint = read_checkpoint(path, with_sums=False)
        fields, state = translate_adaptor(checkpoint, name, partial(check_sums_of, path))
        new.mkdir()
        save_file(state, new / "adaptor.safetensors", metadata={"format": "pt", "adaptor": json.dumps(fields)})

    key = hashlib.sha256(name.encode()).hexdigest()[:16]  # a stranger's file may give a name that is a path
    return _kept(folder / key, write) / "adaptor.safetensors"


def _commit_of(archive: Archive, options: Mapping[str, Any]) -> str:
    """Return the commit of a repository's main branch: on the Hub, else in the cache."""
    assert archive.repository is not None
    try:
        return str(HfApi(endpoint=constants.ENDPOINT, token=options.get("token")).model_info(archive.repository).sha)
    except _UNREACHED as error:
        cache = Path(options.get("cache_dir") or constants.HF_HUB_CACHE)
        folder = "models--" + archive.repository.replace("/", constants.REPO_ID_SEPARATOR)
        reference = cache / folder / "refs" / "main"
        if not reference.is_file():
            raise ValueError(_unreached(archive.repository, archive.name, error)) from error
        return reference.read_text().strip()


def _download(archive: Archive, options: Mapping[str, Any]) -> Path:
    """Return the training file in the Hub's cache; its size and license are shown before it is fetched."""
    assert archive.repository is not None
    repository, name, revision = archive.repository, archive.name, archive.revision
    cached = try_to_load_from_cache(repository, name, cache_dir=options.get("cache_dir"), revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        if not options.get("local_files_only"):
            _announce(archive, options)
        return Path(hf_hub_download(repository, name, revision=revision, **options))
    except _UNREACHED as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise ValueError(_unreached(archive.repository, archive.name, error)) from error


def _announce(archive: Archive, options: Mapping[str, Any]) -> None:
    api = HfApi(endpoint=constants.ENDPOINT, token=options.get("token"))
    info = api.model_info(str(archive.repository), revision=archive.revision, files_metadata=True)
    size = next((file.size for file in info.siblings or [] if file.rfilename == archive.name), None)
    card: Any = info.card_data or {}
    terms = card.get("license_name") or card.get("license") or "see its page"
    shown = "of unknown size" if size is None else f"{size / 1e9:.2f} GB" if size > 1e8 else f"{size / 1e6:.1f} MB"
    _logger.warning(
        f"Fetching {archive.name} ({shown}) of {archive.repository}, which holds the adaptors. License: {terms}."
    )


def _unreached(repository: str, name: str, error: BaseException) -> str:
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{str(error).strip().splitlines()[0]:.200}"
    return (
        f"{name} of {repository}, which has what is asked for, could not be fetched ({reason}). Where the "
        f"Hub can be reached run `hf download {repository} {name}`, and put that file into the Hub's cache "
        f"({constants.HF_HUB_CACHE}) or into a local copy of the folder."
    )


def _assets(*parts: str) -> Path:
    namespace, subfolder = parts
    return cached_assets_path(_LIBRARY, namespace, subfolder, assets_dir=constants.HF_ASSETS_CACHE)


def _identity(path: Path) -> str:
    """Return a name for the content of a local file: its path, size and time."""
    state = path.stat()
    return hashlib.sha256(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]


def _kept(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return a folder that is written once, by one process, under another name until it is complete.

    Raises:
        ValueError: If there is no space.
    """
    if _is_complete(folder):
        return folder
    with WeakFileLock(f"{folder}.lock"):
        if not _is_complete(folder):
            with _space_named(folder), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                write(Path(scratch, "new"))
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(Path(scratch, "new"), folder)
    return folder


def _is_complete(folder: Path) -> bool:
    """Return whether a folder is there, and all that its links lead to."""
    return folder.is_dir() and all(path.exists() for path in folder.iterdir())


@contextmanager
def _space_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"There is no space left for converted adaptors in {str(folder.parent)!r} or for their training file in "
            "the Hub's cache: make space, or set HF_HOME to another disk."
        ) from error


def _join(
    new: Path, tensors: Mapping[str, StoredTensor], root: Path, config: Mapping[str, Any], files: Sequence[Path]
) -> None:
    """Write a folder in NVIDIA's layout: links to weights, and a configuration that describes all adaptors."""
    new.mkdir()
    weights = {key: f"backbone-{tensor.file.name}" for key, tensor in tensors.items()}
    for file in {tensor.file for tensor in tensors.values()}:
        _link(file, new / f"backbone-{file.name}")
    described = list(config.get(BESIDE) or [])
    for number, file in enumerate(files):
        with safe_open(file, "pt") as stored:
            fields, name = json.loads(stored.metadata()["adaptor"]), f"heads-{number}.safetensors"
            weights |= dict.fromkeys(stored.keys(), name)
        _link(file, new / name)
        described.append(fields)
    (new / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (new / CONFIG_NAME).write_text(json.dumps({**config, BESIDE: described}, indent=2) + "\n")
    for other in root.glob("*.json"):
        if other.name not in (CONFIG_NAME, INDEX):
            shutil.copyfile(other, new / other.name)


def _link(target: Path, link: Path) -> None:
    """Link to a file, or copy it where the system has no links."""
    try:
        link.symlink_to(target.resolve())
    except OSError:
        shutil.copyfile(target, link)
