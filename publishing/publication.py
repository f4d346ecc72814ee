"""A folder as it will be on the Hub, and the requests that publish it."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Literal, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.constants import EVAL_RESULTS_FOLDER
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # of the client's library, which differs by version
from transformers.utils import ADAPTER_CONFIG_NAME

from modeling_radio.core.errors import UserError, first_few
from modeling_radio.core.trust import COPIED_FILES, allowed_files, code_beside, has_name
from modeling_radio.extraction.store import Store
from modeling_radio.model_cards.build import RESULTS, WEIGHTS
from modeling_radio.model_cards.kinds import BASE_PLACEHOLDER, is_adapter
from modeling_radio.model_cards.metadata import HUB_ID
from modeling_radio.model_cards.rendering import PLACEHOLDER, UNPUBLISHED, read_card, unsigned
from modeling_radio.peft_radio import read_adapter_config


CARD = "README.md"
PublishedKind = Literal["model", "adapter", "dataset"]
PUBLISHED_FILES = (*COPIED_FILES, f"{EVAL_RESULTS_FOLDER}/*.yaml", "*.onnx", "*.onnx.*.data")
FEATURE_FILES = (
    *(CARD, "*.parquet", "*/*.parquet", "index/*.faiss", "pca.safetensors", "extraction.json", "made.json"),
    *("SHA256SUMS", "LICENSE", "LICENSE.txt", "LICENSE.md"),
)
"""Files that `radio extract`, or another program that writes Parquet, writes."""
_MAX_NAMES = 4
_CODE_BLOCKS = re.compile(r"```python\n(.*?)```", re.DOTALL)
_OPENED = re.compile(r"""(?:from_pretrained\(|load_dataset\(|model=)(["'])(.*?)\1""")
T = TypeVar("T")
WAITS_S = (1.0, 4.0, 16.0)
"""Waits before a request is repeated: our choice, long enough for a server that restarts."""
UPLOAD_FAULTS = (HTTPError, OSError, RuntimeError)
"""Errors of the commit: hf_xet, which sends large files, raises no HTTPError."""
KEPT = (".gitattributes",)
"""Files of a repository that the Hub makes itself."""


@dataclass(frozen=True)
class Publication:
    """Content of an upload.

    Attributes:
        store: Folder that is uploaded, or its address.
        kind: Kind of the folder.
        repo_id: `ORG/NAME`.
        files: Files by their path in the folder, which is that in the repository: the size, or the new content of a
            file that names repositories.
    """

    store: Store
    kind: PublishedKind
    repo_id: str
    files: dict[str, int | bytes]

    @property
    def repo_type(self) -> str:
        """Kind of repository on the Hub."""
        return "dataset" if self.kind == "dataset" else "model"

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        content = self.files[name]
        return content if isinstance(content, bytes) else self.store.read(name)

    def num_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(len(each) if isinstance(each, bytes) else each for each in self.files.values())


def read_folder(
    folder: Path | str, repo_id: str, base: str | None = None, *, trusts_remote_code: bool = False
) -> Publication:
    """Return the files that a folder becomes on the Hub; the folder stays as it is.

    Args:
        folder: A checkpoint, an adapter, or features in Parquet files, which may be at an address.
        repo_id: `ORG/NAME`; replaces the placeholder in the card's code.
        base: Repository of an adapter's base, which may be a folder here.
        trusts_remote_code: Whether to publish files with code of others that `config.json` names.

    Raises:
        ValueError: If it is another folder, holds other files or links, has no card, or the card's code opens something
            else; or if an address is not reached.
    """
    store = Store(folder, "checkpoint")
    if store.folder is None:
        kind, sizes = "dataset", _files_at_address(store)
    else:
        kind, sizes = _files_of_folder(store.folder, code_beside(store.folder) if trusts_remote_code else [])
    files: dict[str, int | bytes] = {**sizes}
    if CARD not in files:
        command = f"`radio card {folder} --license ID`"
        command = "`radio extract`, with its options as before," if kind == "dataset" else command
        raise ValueError(f"{folder} has no card. {command} writes it.")
    card = unsigned(store.read(CARD).decode().replace("\r\n", "\n"))
    card = card.replace(UNPUBLISHED, "").replace(PLACEHOLDER, repo_id)
    if kind == "adapter":
        named, files[ADAPTER_CONFIG_NAME] = _adapter_config(Path(folder), base)
        found = read_card(card.replace(BASE_PLACEHOLDER, named))
        found.data.__dict__.update(base_model=[named], base_model_relation="adapter")
        card = str(found)
    elif base is not None:
        raise ValueError(f"`base` must be left out where the folder holds no adapter, got {base!r}.")
    files[CARD] = card.encode()
    others = sorted({name for block in _CODE_BLOCKS.findall(card) for _, name in _OPENED.findall(block)} - {repo_id})
    if others:
        raise ValueError(
            f"The card's code opens {', '.join(others)}, not {repo_id}: write it again by `radio card`, without its "
            "`--model-id`."
        )
    return Publication(store, kind, repo_id, files)


def _kind(folder: Path) -> PublishedKind:
    if is_adapter(folder):
        return "adapter"
    if (folder / "config.json").is_file() and any((folder / name).is_file() for name in WEIGHTS):
        return "model"
    if any(folder.rglob("*.parquet")):
        return "dataset"
    raise ValueError(
        f"`checkpoint` must be a folder with a model (config.json, {WEIGHTS[0]}), an adapter ({ADAPTER_CONFIG_NAME}) "
        f"or features (*.parquet), got {str(folder)!r}."
    )


def _files_of_folder(folder: Path, code: Sequence[str]) -> tuple[PublishedKind, dict[str, int]]:
    """Return the kind of a folder, and the sizes of the files to publish by their path in it.

    Caches, hidden files other than the Hub's own, and the results that the card was written from are left out: the card
    shows the results, and they name the command that measured and its folders. Any other file is refused.
    """
    kind = _kind(folder)
    found = allowed_files(folder, FEATURE_FILES if kind == "dataset" else (*PUBLISHED_FILES, *code))
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir()]
    visible = [name for name in names if name.name != RESULTS and "__pycache__" not in name.parts]
    visible = [name for name in visible if not any(part.startswith(".") for part in name.parts)]
    _refuse([name.as_posix() for name in visible if name.as_posix() not in found], folder, kind)
    return kind, {name: path.stat().st_size for name, path in found.items()}


def _files_at_address(store: Store) -> dict[str, int]:
    """Return the sizes of the files of features to publish by their names; hidden ones are left out."""
    visible = {
        name: size for name, size in store.sizes().items() if not any(part.startswith(".") for part in name.split("/"))
    }
    if not any(name.endswith(".parquet") for name in visible):
        raise ValueError(
            f"`checkpoint` must be a folder of this machine, or the address of features (*.parquet), got {str(store)!r}"
            ". Copy a model or an adapter to a folder first."
        )
    _refuse([name for name in visible if not has_name(name, FEATURE_FILES)], store, "dataset")
    return visible


def _refuse(strangers: list[str], folder: Path | Store, kind: PublishedKind) -> None:
    if strangers:
        raise ValueError(
            f"{str(folder)!r} must hold only files of a {kind}, got {first_few(strangers, _MAX_NAMES)}: move these "
            "away, because everything published stays public."
        )


def _adapter_config(folder: Path, base: str | None) -> tuple[str, bytes]:
    """Return the repository of an adapter's base, and the content of the file that names it.

    `auto_mapping`, which names a module of the training process for peft to import, is left out.
    """
    config = read_adapter_config(folder)
    named = base or str(config.get("base_model_name_or_path"))
    if not HUB_ID.fullmatch(named):
        raise ValueError(f"`base` must be the repository of the adapter's base, got {named!r}. Give `--base ORG/NAME`.")
    text = (
        json.dumps(config | {"base_model_name_or_path": named, "auto_mapping": None}, indent=2, sort_keys=True) + "\n"
    )
    return named, text.encode()


class PublishError(UserError):
    """The Hub refused a request; the message says what is there now and how to go on."""


def publish(publication: Publication, api: HfApi, *, private: bool, revision: str | None, exist_ok: bool) -> str:
    """Upload a folder to the Hub.

    All files go in one commit, so that others see the old version or the new one. An upload may be repeated: the Hub
    makes no commit of unchanged files.

    Args:
        publication: Checked content of the upload.
        api: Client of the Hub.
        private: Whether a new repository is private; the visibility of an old one is never changed.
        revision: Tag of this version; None takes the first of v1, v2, ... that is free.
        exist_ok: Whether the repository may be there already.

    Returns:
        The address of this version.

    Raises:
        PublishError: If the Hub refuses, or fails for longer than `WAITS_S`.
    """
    repo = {"repo_id": publication.repo_id, "repo_type": publication.repo_type}
    is_new = _create(publication, api, private=private, exist_ok=exist_ok)
    state = "The new repository is empty; the same command with `--exist-ok` goes on."
    state = state if is_new else "The repository is as it was."
    old_files: set[str] = set()
    tags: set[str] = set()
    if not is_new:
        info = _ask(lambda: api.repo_info(**repo), "open the repository", state)
        if private and not info.private:
            raise PublishError(
                f"`private` cannot be had: {publication.repo_id} is public already. Nothing was uploaded."
            )
        old_files = {sibling.rfilename for sibling in getattr(info, "siblings", None) or []} - set(KEPT)
        tags = {tag.name for tag in _ask(lambda: api.list_repo_refs(**repo), "list the versions", state).tags}
    if revision in tags:
        raise PublishError(f"`revision` must be new, got {revision!r}, which {publication.repo_id} has. {state}")
    tag = revision or next(name for name in (f"v{number}" for number in range(1, len(tags) + 2)) if name not in tags)
    gone = sorted(old_files - publication.files.keys())
    sent = {
        name: _ask(partial(_send, publication, api, name), "upload", state, faults=UPLOAD_FAULTS)
        for name, content in publication.files.items()
        if publication.store.folder is None and not isinstance(content, bytes)
    }
    _ask(lambda: _commit(publication, api, sent, gone, f"Publish {tag}"), "upload", state, faults=UPLOAD_FAULTS)
    state = f"All files are there; only the tag {tag!r} is missing: the same command with `--exist-ok` sets it."
    _ask(lambda: api.create_tag(**repo, tag=tag, exist_ok=True), "tag the version", state)
    kind = "datasets/" if publication.repo_type == "dataset" else ""
    return f"{api.endpoint}/{kind}{publication.repo_id}/tree/{tag}"


def _create(publication: Publication, api: HfApi, *, private: bool, exist_ok: bool) -> bool:
    """Create the repository, and return whether it is new."""
    repo_id = publication.repo_id
    try:
        _ask(
            lambda: api.create_repo(repo_id, repo_type=publication.repo_type, private=private),
            "create the repository",
            "Nothing was uploaded.",
        )
    except PublishError as error:
        cause = error.__cause__
        if not isinstance(cause, HfHubHTTPError) or cause.response.status_code != HTTPStatus.CONFLICT:
            raise
        if not exist_ok:
            raise PublishError(f"{repo_id} exists already. Give `--exist-ok` to add a version to it.") from error
        return False
    return True


def _send(publication: Publication, api: HfApi, name: str) -> CommitOperationAdd:
    """Upload a file from an address before its commit, by a copy that only exists meanwhile.

    huggingface-hub would take file objects, but not those of all file systems, reads them twice, and cannot send them
    to Xet, the Hub's storage of large files.
    """
    with publication.store.reading(name) as path:
        added = CommitOperationAdd(name, path)
        api.preupload_lfs_files(publication.repo_id, [added], repo_type=publication.repo_type)
        if added.path_or_fileobj:  # not emptied, so not sent: a small file, which goes in the commit itself
            added.path_or_fileobj = path.read_bytes()
    return added


def _commit(
    publication: Publication, api: HfApi, sent: Mapping[str, CommitOperationAdd], gone: list[str], title: str
) -> None:
    added = [
        sent[name] if name in sent else CommitOperationAdd(name, _content(publication, name))
        for name in publication.files
    ]
    api.create_commit(
        publication.repo_id,
        [*added, *(CommitOperationDelete(name) for name in gone)],
        commit_message=title,
        repo_type=publication.repo_type,
    )


def _content(publication: Publication, name: str) -> Path | io.BytesIO:
    content, folder = publication.files[name], publication.store.folder
    if isinstance(content, bytes):
        return io.BytesIO(content)
    assert folder is not None
    return folder / name


def _ask(request: Callable[[], T], what: str, state: str, faults: tuple[type[Exception], ...] = (HTTPError,)) -> T:
    """Return the result of a request, repeated after temporary failures.

    Args:
        request: Function that makes the request.
        what: Purpose, for the message.
        state: State of the Hub if the request fails for good, for the message.
        faults: Errors that the request raises where it fails.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return request()
        except faults as error:
            if wait_s is None or not _is_temporary(error):
                raise PublishError(f"The Hub did not let us {what}: {_reason(error)} {state}") from error
        time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _is_temporary(error: Exception) -> bool:
    """Return whether a failure is temporary: of the network or the server, not of the request or of a local file."""
    if not isinstance(error, HfHubHTTPError):
        return not isinstance(error, FileNotFoundError | PermissionError)  # no answer came
    return error.response.status_code in (408, 429) or error.response.status_code >= 500


def _reason(error: Exception) -> str:
    if not isinstance(error, HfHubHTTPError):
        return f"{str(error) or type(error).__name__}."
    status = error.response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"it refuses the token ({status}). `hf auth login` with one that may write, or set HF_TOKEN."
    return f"it answers {status}, {(str(error).strip().splitlines() or ['without a reason'])[-1].strip('. ')}."
