"""What a command that writes a model folder may replace: an earlier model folder, and never anything else."""

import json
from collections.abc import Iterable
from pathlib import Path

from foundation.files import check_output
from foundation.trust import MODEL_FILES, has_name
from modeling_radio import RadioConfig


REPLACED_FILES = (*MODEL_FILES, "__pycache__", ".gitattributes")
"""Names of what a model folder holds: it can be written again. Whatever else lies there is somebody's work."""


def check_model_output(path: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output folder whose replacement would lose something, before any long work.

    Args:
        path: Folder to be written.
        overwrite: Whether an earlier model folder may be replaced.
        inputs: Files and folders that the command reads.

    Raises:
        ValueError: If `path` exists and `overwrite` is off; or it is or holds an input or the working directory; or
            it is neither empty nor a RADIO model folder without files of others.
    """
    check_output(path, overwrite=overwrite, inputs=inputs)
    if not path.exists():
        return
    if Path.cwd().is_relative_to(path.resolve()):
        raise ValueError(f"`output` must not be or hold the working directory, got {str(path)!r}. Name a new folder.")
    if not path.is_dir():
        raise ValueError(f"`output` must be a folder, got the file {str(path)!r}. Name another output.")
    entries = sorted(entry.name for entry in path.iterdir())
    if entries and not _is_model(path):
        raise ValueError(
            f"--overwrite replaces RADIO model folders only, and {str(path)!r} is none: its config.json is missing or "
            "another model's. Name another output, or remove that folder yourself."
        )
    strangers = [name for name in entries if not has_name(name, REPLACED_FILES)]
    if strangers:
        raise ValueError(
            f"--overwrite would remove what is no part of a model from {str(path)!r}: {', '.join(strangers)}. Move it "
            "away or name another output."
        )


def _is_model(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("model_type") == RadioConfig.model_type
