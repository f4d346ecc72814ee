"""Checkpoints: folders that appear complete or not at all, newest found again after any crash, oldest removed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundation.files import write_folder
from foundation.settings import differences
from training.recipe import Recipe, RecipeError, decisive_part


MAX_DIFFERENCES_SHOWN = 5


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the state after `step` optimizer steps lies."""
    return folder / f"step_{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_????????") if (path / "state.json").is_file())


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def save_checkpoint(
    folder: Path, state: dict[str, Any], write_tensors: Callable[[Path], object], num_kept: int
) -> Path:
    """Write a checkpoint, then remove the oldest ones.

    Args:
        folder: Where all checkpoints of the run lie.
        state: Plain data for `state.json`; `state["step"]` names the checkpoint.
        write_tensors: Writes every other file into the folder that it is given.
        num_kept: Newest checkpoints that stay.

    Returns:
        The checkpoint's folder.

    Raises:
        WriteError: If it cannot be written; older checkpoints are intact.
    """

    def write(path: Path) -> None:
        write_tensors(path)
        (path / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")

    path = checkpoint_path(folder, state["step"])
    write_folder(path, write)
    for old in list_checkpoints(folder)[:-num_kept]:
        shutil.rmtree(old)
    return path


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the plain data that `save_checkpoint` was given."""
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def check_same_recipe(checkpoint: Path, saved: dict[str, Any], recipe: Recipe) -> None:
    """Refuse to resume a run with another recipe.

    Args:
        checkpoint: Folder of the checkpoint, for the message.
        saved: The checkpoint's resolved recipe.
        recipe: This session's recipe.

    Raises:
        RecipeError: If anything that decides the weights differs; the message lists what.
    """
    changed = differences(decisive_part(saved), decisive_part(recipe.to_dict()))
    if not changed:
        return
    more = f" and {len(changed) - MAX_DIFFERENCES_SHOWN} more" if len(changed) > MAX_DIFFERENCES_SHOWN else ""
    raise RecipeError(
        f"{str(checkpoint)!r} belongs to another recipe ({'; '.join(changed[:MAX_DIFFERENCES_SHOWN])}{more}): "
        "resume with the same one, or give another --output."
    )
