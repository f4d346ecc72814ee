"""Load a pretrained model of transformers, or say in one line why it does not load."""

from __future__ import annotations

import functools
import getpass
import os
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

from modeling_radio.checks_radio import check_choice
from training.teachers.answers import teacher_error


Weights = Literal["pretrained", "random"]
WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def check_weights(name: str, weights: str, weights_dtype: str = "float32") -> None:
    """Raise a ValueError if a teacher's option `weights` or `weights_dtype` is none of those that there are."""
    error = functools.partial(teacher_error, name)
    check_choice("weights", weights, get_args(Weights), error=error)
    check_choice("weights_dtype", weights_dtype, WEIGHT_DTYPES, error=error)


def loading_turn() -> FileLock:
    """Return the lock under which this user's processes on this machine load teachers, one after the other.

    Together, the ranks of a machine would hold several copies of all weights in its memory at once; the first one's
    downloads serve the others.
    """
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()  # in a container a user may have no name
    return FileLock(Path(tempfile.gettempdir()) / f"radio-teachers-{user}.lock")


def find_folder(source: str) -> Path:
    """Return a folder, or that of a repository on the Hub, downloaded if it is not here yet.

    Raises:
        ValueError: If it is no folder and the Hub does not give it: one line.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(source, allow_patterns=list(_FILES)))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise ValueError(f"it is no folder here; the Hub: {explain_failure(error, source)}") from error


def load_pretrained(model_class: type, source: str, name: str, **arguments: Any) -> Any:
    """Return `model_class.from_pretrained(source)`, refusing a checkpoint that lacks some weights.

    Raises:
        ValueError: If the checkpoint is not that model, is incomplete, or cannot be reached: one line.
    """
    try:
        model, report = model_class.from_pretrained(source, output_loading_info=True, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        reason = explain_failure(error, source)
        message = f"`source` {source!r} does not load as {model_class.__name__}: {reason}"
        raise teacher_error(name, message) from error
    problems = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if problems:
        shown = ", ".join(problems[:3])
        raise teacher_error(
            name,
            f"`source` {source!r} is not a complete {model_class.__name__}: {len(problems)} weights are missing or of "
            f"another shape, the first are {shown}.",
        )
    return model


def load_config(source: str, name: str) -> Any:
    """Return the checkpoint's config.

    Raises:
        ValueError: If it is missing, behind a license gate, or of a model that the installed transformers does not
            know: one line.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise teacher_error(name, f"no model at `source` {source!r}: {explain_failure(error, source)}") from error
    return config


def check_model_type(name: str, source: str, config: Any, accepted: tuple[str, ...]) -> None:
    """Raise a ValueError if a checkpoint is of another model type than the accepted ones."""
    if config.model_type not in accepted:
        raise teacher_error(
            name,
            f"`source` must be a model of one of the types {list(accepted)}, got {source!r}, a {config.model_type!r}.",
        )


def explain_failure(error: BaseException, source: str) -> str:
    """Return why the Hub or a folder did not give a model: one line that says what to do where access was refused."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    page = f"https://huggingface.co/{source}"
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return f"its license must be accepted. Do so at {page}, then log in with `hf auth login`."
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
            return f"access refused (HTTP {cause.response.status_code}). See {page}, and log in with `hf auth login`."
    return f"{str(error).strip().splitlines()[0].rstrip('.')}."
