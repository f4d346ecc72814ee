"""The requests that publish: create, look, one commit, one tag. A request that fails in passing is made again."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # of the client's library, which differs by version

from foundation.errors import UserError
from training.publishing.folders import Publication


T = TypeVar("T")
WAITS_S = (1.0, 4.0, 16.0)
"""Before a request is made again: our choice, long enough for a server that restarts."""
UPLOAD_FAULTS = (HTTPError, OSError, RuntimeError)
"""Of the commit, whose large files hf_xet sends: what it raises is no HTTPError."""
KEPT = (".gitattributes",)
"""Files of a repository that no folder has."""


class PublishError(UserError):
    """The Hub did not take something; the message says what is there now and what helps."""


def publish(publication: Publication, api: HfApi, *, private: bool, revision: str | None, exist_ok: bool) -> str:
    """Bring a folder to the Hub.

    All files go in one commit, so that whoever looks sees the old version or the new one. An upload may be repeated: a
    commit that holds nothing new is none.

    Args:
        publication: What to upload, checked.
        api: Of the Hub.
        private: Whether a new repository is; that of an old one is never changed.
        revision: Tag of this version; None takes the first of v1, v2, ... that is free.
        exist_ok: Whether the repository may be there already.

    Returns:
        The address of this version.

    Raises:
        PublishError: If the Hub refuses, or fails for longer than is waited for.
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
    _ask(lambda: _commit(publication, api, gone, f"Publish {tag}"), "upload", state, faults=UPLOAD_FAULTS)
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


def _commit(publication: Publication, api: HfApi, gone: list[str], title: str) -> None:
    added = [
        CommitOperationAdd(name, io.BytesIO(content) if isinstance(content, bytes) else content)
        for name, content in publication.files.items()
    ]
    api.create_commit(
        publication.repo_id,
        [*added, *(CommitOperationDelete(name) for name in gone)],
        commit_message=title,
        repo_type=publication.repo_type,
    )


def _ask(request: Callable[[], T], what: str, state: str, faults: tuple[type[Exception], ...] = (HTTPError,)) -> T:
    """Return the answer to a request, made again where it failed in passing.

    Args:
        request: Makes it.
        what: What it is for, in words.
        state: What is on the Hub if it fails for good.
        faults: What it raises where it fails.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return request()
        except faults as error:
            if wait_s is None or not _passes(error):
                raise PublishError(f"The Hub did not let us {what}: {_reason(error)} {state}") from error
        time.sleep(wait_s)
    raise AssertionError("the last wait is none")


def _passes(error: Exception) -> bool:
    """Return whether a failure is one of the network or of the server, not of what was asked or of a file here."""
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
