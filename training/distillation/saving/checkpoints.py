"""Checkpoints: which a run goes on from, and what it must have in common with them."""

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from foundation.errors import UserError, did_you_mean
from foundation.settings import differences, order_differences, setting_paths, with_defaults
from training.distillation.saving.manifests import find_damage
from training.recipe import Recipe, RecipeError, decisive_part, load_recipe


logger = logging.getLogger(__name__)

MAX_DIFFERENCES_SHOWN = 5

UNCHANGEABLE = (
    *("student.preset", "student.config", "student.adaptor", "spectral", "taps", "optimizer.name"),
    *("balancing.method", "contrastive.bank_size"),
)
"""Settings, or sections of them, that say which network is trained and what its optimizer and losses remember."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line that names the file and says what to do."""

    @classmethod
    def of_all(cls, folder: Path, damages: Iterable[str]) -> "CheckpointError":
        """Return the error of a run whose checkpoints are all damaged, as `damages` say."""
        return cls(
            f"{str(folder)!r} has no intact checkpoint: {'; '.join(damages)}. Restore these files from a copy, or "
            "give another --output to start anew."
        )


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the state after `step` optimizer steps lies."""
    return folder / f"step_{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints, oldest first, whether intact or not."""
    return sorted(path for path in folder.glob("step_????????") if path.is_dir())


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest intact checkpoint, or None if there is none at all; say which are passed over.

    Raises:
        CheckpointError: If there are some, all of them damaged. They stay as they are.
    """
    damages: list[str] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        damage = find_damage(checkpoint)
        if damage is None:
            for text in damages:
                logger.warning("%s: the run goes on from %r instead", text, str(checkpoint))
            return checkpoint
        damages.append(damage)
    if damages:
        raise CheckpointError.of_all(folder, damages)
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the plain data that `CheckpointWriter.begin` was given."""
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def check_allowed_changes(names: Sequence[str], recipes: Iterable[Recipe]) -> None:
    """Refuse names of allowed changes that are neither settings nor sections of any of some recipes.

    Raises:
        RecipeError: If there is such a name; the message suggests another.
    """
    known = {name for recipe in recipes for name in _names_of(recipe)}
    for name in names:
        if name not in known:
            raise RecipeError(
                f"`allow_changes` must name settings of the recipe, or sections, got {name!r}."
                f"{did_you_mean(name, sorted(known))}"
            )


def _names_of(recipe: Recipe) -> set[str]:
    """Return what the settings of a recipe, and its sections, are called."""
    return {name for path in setting_paths(recipe.to_dict()) for name in _with_sections(path)}


def _with_sections(path: str) -> list[str]:
    """Return the name of a setting, then those of the sections that it is in, the smallest first."""
    names = path.split(".")
    return [".".join(names[:length]) for length in range(len(names), 0, -1)]


def check_same_recipe(
    checkpoint: Path, saved: dict[str, Any], recipe: Recipe, allowed: Sequence[str] = ()
) -> list[str]:
    """Refuse to resume a run with another recipe, but for changes that are allowed.

    Args:
        checkpoint: Folder of the checkpoint, for the message.
        saved: The checkpoint's resolved recipe. Settings that it lacks are newer than it, and had their defaults.
        recipe: This session's recipe.
        allowed: Settings that may differ, for example "data.source", or sections. `UNCHANGEABLE` ones may not, nor
            which teachers there are, whether `contrastive` has a weight, and the order of teachers and partitions.

    Returns:
        The allowed changes that there are, `"section.field: old -> new"`.

    Raises:
        RecipeError: If anything else that decides the weights differs; the message lists what.
    """
    parts = decisive_part(with_defaults(Recipe, saved)), decisive_part(recipe.to_dict())
    orders, changes = order_differences(*parts), differences(*parts)
    fixed = [*orders, *(change for change in changes if _is_of(change, [*UNCHANGEABLE, *_of_one_only(*parts)]))]
    accepted = [change for change in changes if change not in fixed and _is_of(change, allowed)]
    refused = [*orders, *(change for change in changes if change not in accepted)]
    if not refused:
        return accepted
    more = f" and {len(refused) - MAX_DIFFERENCES_SHOWN} more" if len(refused) > MAX_DIFFERENCES_SHOWN else ""
    if fixed:
        path = fixed[0].partition(": ")[0]
        advice = f"Networks, teachers, optimizers, losses that remember and orders cannot be changed in a run ({path})."
    else:
        names = ",".join(_nameable(refused, _names_of(recipe)))
        advice = f"`training.distill --allow-changes {names}` goes on with what is new."
    raise RecipeError(
        f"{str(checkpoint)!r} belongs to another recipe ({'; '.join(refused[:MAX_DIFFERENCES_SHOWN])}{more}): "
        f"resume with the same one, or give another --output. {advice}"
    )


def check_export(output: Path, recipe: Recipe, allowed: Sequence[str] = ()) -> None:
    """Refuse a finished run of another recipe where there are no checkpoints, which would tell: it would be replaced.

    Raises:
        RecipeError: As `check_same_recipe`.
    """
    path = output / "recipe.yaml"
    if (output / "final").is_dir() and path.is_file():
        check_same_recipe(output / "final", load_recipe(str(path)).to_dict(), recipe, allowed)


def _of_one_only(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the teachers, and the loss with a memory, that only one of two recipes has."""
    before, after = ({f"teachers.{entry['name']}" for entry in part["teachers"]} for part in (saved, now))
    is_switched = bool(saved["contrastive"]["weight"]) != bool(now["contrastive"]["weight"])
    return [*sorted(before ^ after), *(["contrastive"] if is_switched else [])]


def _nameable(changes: Iterable[str], known: Collection[str]) -> list[str]:
    """Return names by which changes can be allowed: of what the recipe does not have any more, the section's."""
    paths = [change.partition(": ")[0] for change in changes]
    return list(dict.fromkeys(next((name for name in _with_sections(path) if name in known), path) for path in paths))


def _is_of(change: str, names: Iterable[str]) -> bool:
    """Return whether a change is of one of some settings, or of a setting in one of some sections."""
    path = change.partition(": ")[0]
    return any(path == name or path.startswith(f"{name}.") for name in names)


def warn_of_other_data(checkpoint: Path, saved: str, now: str) -> None:
    """Say what changed if the data is not what a checkpoint was trained on: the run goes on with what there is now.

    Args:
        checkpoint: Folder of the checkpoint, for the message.
        saved: The fingerprint of its data.
        now: That of this session's.
    """
    if saved == now:
        return
    logger.warning(
        "%r was trained on other data (%s -> %s; names and state are hashes, state of names, sizes and times): the "
        "run goes on, but not as it would have with the same",
        str(checkpoint),
        saved,
        now,
    )


def check_fits(path: Path, saved: Mapping[str, Sequence[int]], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not of what they are to be loaded into.

    Args:
        path: The file that they are from, for the message.
        saved: Their shapes, by name.
        wanted: What they are loaded into, by name.

    Raises:
        CheckpointError: If names or shapes differ, as where a teacher's answers have other channels than before.
    """
    changed = differences(dict(saved), {name: tuple(tensor.shape) for name, tensor in wanted.items()})
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise CheckpointError(
            f"{str(path)!r} is of another network ({changed[0]}{more}): a teacher or the code has changed since. Go on "
            "with the same ones, or give another --output."
        )
