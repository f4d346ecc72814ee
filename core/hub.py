"""Models by folder or by their name on the Hugging Face Hub, and the reasons why one does not open."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from modeling_radio.checks_radio import find_builtin
from modeling_radio.core.ids import HUB_PREFIX
from modeling_radio.hub_radio import is_unreached


FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Files of a model that are downloaded: no pickles and no code."""
HUB_ERRORS = (OSError, HFValidationError, HfHubHTTPError, HTTPError)
"""Errors of a download."""
_UNREACHED = (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, ConnectionError, TimeoutError)


def find_folder(
    source: str | Path, argument: str | None = None, *, adaptors: Sequence[str] = (), files: Sequence[str] = FILES
) -> Path:
    """Return a folder, or that of a repository on the Hub, downloaded if necessary.

    Args:
        source: Folder, `builtin:NAME`, `ORG/NAME`, also as `hub:ORG/NAME`, or a training file of NVIDIA's, which is
            converted once.
        argument: Setting that names it, for messages; None for callers that say it themselves.
        adaptors: Adaptors that the folder shall have; NVIDIA's lack theirs (`modeling_radio.nvidia.beside`).
        files: Names or patterns of the files that are downloaded.

    Raises:
        ValueError: If it is no folder and the Hub does not return it, or has no such adaptors; the message is one line.
    """
    from modeling_radio.nvidia.beside import folder_of_archive, folder_with_adaptors, is_training_file

    folder = Path(find_builtin(source)).expanduser()
    if is_training_file(folder):
        return folder_of_archive(folder)
    folder = folder if folder.is_dir() else _download(source, argument, files)
    return Path(folder_with_adaptors(folder, adaptors)) if adaptors else folder


def _download(source: str | Path, argument: str | None, files: Sequence[str]) -> Path:
    name = (source.as_posix() if isinstance(source, Path) else source).removeprefix(HUB_PREFIX)
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), local_files_only=is_unreached(name, {})))
    except HUB_ERRORS as error:
        reason = f"it is no folder here; {explain_failure(error, name)}"
        rule = f"`{argument}` must be a folder or ORG/NAME on the Hub, got {name!r}: " if argument else ""
        raise ValueError(f"{rule}{reason}") from error


def explain_failure(error: BaseException, source: str) -> str:
    """Return one line with the reason why no model was opened, and what to do."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    page = f"{constants.ENDPOINT}/{source}"
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return f"its license must be accepted. Do so at {page}, then log in with `hf auth login`."
        if isinstance(cause, RepositoryNotFoundError):
            return f"the Hub has no {page}, or it is private: look at the name, or log in with `hf auth login`."
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
            return f"access refused (HTTP {cause.response.status_code}). See {page}, and log in with `hf auth login`."
        if isinstance(cause, HFValidationError):
            return "the Hub has no such names: they are NAME or ORG/NAME."
    if any(isinstance(cause, _UNREACHED) and not isinstance(cause, HfHubHTTPError) for cause in causes):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "look at the network, or HF_ENDPOINT"
        return f"the Hub cannot be reached ({why}), and the cache holds no copy of {source}."
    return f"{str(error).strip().splitlines()[0].rstrip('.')}."
