"""Checkpoints of a run: written aside by all ranks, whole or not at all, and resumed exactly.

Not on `torch.distributed.checkpoint`: it unpickles its metadata, which runs code of whoever wrote the file, and it
loads damaged bytes without an error (tried with torch 2.13).
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from modeling_radio.checks_radio import did_you_mean
from modeling_radio.core.checked_tensors import load_optimizer_tensors, optimizer_tensors
from modeling_radio.core.files import (
    TEMPORARY_PREFIX,
    WriteError,
    move_into_place,
    one_line_errors,
    scratch_folder,
    write_through,
)
from modeling_radio.core.machine import arithmetic
from modeling_radio.core.manifests import CheckpointError, FileFacts, describe_files, find_damage, write_manifest
from modeling_radio.core.ranks import of_all_ranks, on_first_rank, rank_and_count
from modeling_radio.core.settings import differences, order_differences, setting_paths, with_defaults
from modeling_radio.training.distillation.monitoring import SkippedSteps
from modeling_radio.training.recipes.recipe import (
    RECIPE_FILE,
    Recipe,
    RecipeError,
    decisive_part,
    load_recipe,
    unchangeable,
)
from modeling_radio.training.student.sharding import (
    as_part,
    first_row,
    load_state_tensors,
    local_parts,
    parameters_of_moments,
    part_number,
    state_tensors,
)
from modeling_radio.training.targets.examples import TargetSource
from modeling_radio.training.views.dealing import DEALING


PART_BYTES = 2**26
"""Size from which ranks with copies of the student share the work of copying and writing it, 64 MiB. Our choice: a
rank is done with it in less than a second."""


class HostCopies:
    """Copies of tensors in the CPU's memory, which is kept for the next copies.

    New memory takes several times as long, because the system hands it out page by page. That of a GPU's tensors is
    pinned, so that the GPU itself writes there.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    def take(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies, which hold until the next call with this name.

        Args:
            name: Name of these tensors as a group.
            tensors: By name.
        """
        for key, tensor in tensors.items():
            kept = self._kept.get((name, key))
            if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
                kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._kept[name, key] = kept
            kept.copy_(tensor, non_blocking=True)
        for device in {tensor.device for tensor in tensors.values()}:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
        return {key: self._kept[name, key] for key in tensors}


def writers_of(
    name: str,
    tensors: Mapping[str, Tensor],
    copies: HostCopies,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    first: int = 0,
) -> tuple[dict[str, Callable[[Path], None]], int]:
    """Return what writes this rank's part of tensors as they are now: copies are taken, without any exchange.

    Each rank writes its shards. What every rank has is written by the first one, or in turn if it is large.

    Args:
        name: File-name prefix.
        tensors: By name, whole or sharded.
        copies: Takes the copies; those of the checkpoint before must be written.
        rank: Rank of this process.
        num_ranks: Number of ranks.
        first: Rank that writes the first part of what every rank has; those after it the others.

    Returns:
        Writers of files by name, none where other ranks write everything; and the `first` of the next tensors. A file
        without tensors (an optimizer's before its first step) is written too, so that a missing file is noticed.
    """
    parts: dict[str, tuple[int, int]] = {}  # this rank's: number of the part, and of how many
    found = {key: part_number(tensor) for key, tensor in tensors.items()}
    if all(part == (0, 1) for part in found.values()):
        count = _num_parts(tensors, num_ranks)
        writers = [(first + part) % num_ranks for part in range(count)] if count > 1 else [0]
        parts = {key: (part, count) for key, part in _divide(tensors, count).items() if writers[part] == rank}
        first += count if count > 1 else 0
    else:  # beside shards, what is whole lies in the first rank's file
        parts = {key: part for key, part in found.items() if part is not None and (rank == 0 or part != (0, 1))}
    own = {key: tensors[key] for key in parts}
    number, count = max(parts.values(), key=lambda part: part[1], default=(0, 1))
    local = copies.take(name, dict(zip(own, local_parts([each.detach() for each in own.values()]), strict=True)))
    file = f"{name}.safetensors" if count == 1 else f"{name}-{number + 1:05d}-of-{count:05d}.safetensors"
    return ({file: partial(save_file, local)} if own or (rank == 0 and not tensors) else {}), first


def _num_parts(tensors: Mapping[str, Tensor], num_ranks: int) -> int:
    return max(1, min(num_ranks, sum(tensor.nbytes for tensor in tensors.values()) // PART_BYTES))


def _divide(tensors: Mapping[str, Tensor], count: int) -> dict[str, int]:
    """Return the part of each tensor: neighbors, of about equal size in sum."""
    total, before, parts = max(1, sum(tensor.nbytes for tensor in tensors.values())), 0, {}
    for key, tensor in tensors.items():
        parts[key] = min(count - 1, before * count // total)
        before += tensor.nbytes
    return parts


class SavedTensors:
    """The tensors of a file or of its parts, read one by one as they are asked for.

    Args:
        folder: Where the files lie.
        name: File-name prefix.

    Raises:
        CheckpointError: If there are no such files.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.safetensors"
        paths = [self.path] if self.path.is_file() else sorted(folder.glob(f"{name}-?????-of-?????.safetensors"))
        if not paths:
            raise CheckpointError(f"{str(self.path)!r} is missing. Restore it from a copy, or give another --output.")
        self._files: dict[str, list[Any]] = {}  # by tensor
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in (safe_open(path, "pt") for path in paths):
            for key in file.keys():  # noqa: SIM118
                self._files.setdefault(key, []).append(file)
                rows, *others = file.get_slice(key).get_shape() or [None]
                before = self.shapes.get(key, (0,))
                self.shapes[key] = () if rows is None else (before[0] + rows, *others)

    def read(self, key: str, like: Tensor | None = None) -> Tensor:
        """Return a tensor, sharded as `like` is: then this rank reads its rows only."""
        if not self.shapes[key]:
            return self._files[key][0].get_tensor(key)
        own = None if like is None else local_parts([like])[0]
        start = 0 if like is None else first_row(like)
        end = self.shapes[key][0] if own is None else start + len(own)
        slices = [file.get_slice(key) for file in self._files[key]]
        parts: list[Tensor] = []
        for part in slices:
            rows = part.get_shape()[0]
            parts.append(part[min(max(start, 0), rows) : min(max(end, 0), rows)])
            start, end = start - rows, end - rows
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found if like is None or own is None else as_part(found.to(own.device), like)


logger = logging.getLogger(__name__)

MAX_DIFFERENCES_SHOWN = 5


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
        allowed: Settings that may differ, for example "data.source", or sections. Those of `unchangeable` may not, nor
            the order of teachers and partitions.
            Settings that are shares of the run change with its number of steps.

    Returns:
        The allowed changes that there are, `"section.field: old -> new"`.

    Raises:
        RecipeError: If anything else that decides the weights differs; the message lists what.
    """
    recipes = with_defaults(Recipe, saved), recipe.to_dict()
    parts = decisive_part(recipes[0]), decisive_part(recipes[1])
    orders, changes, told = order_differences(*parts), differences(*parts), differences(*recipes)
    shares = [change for change in changes if _path_of(change) not in map(_path_of, told)]  # of another number of steps
    own = [change for change in changes if change not in shares]
    fixed = [*orders, *(change for change in own if _is_of(change, unchangeable(*parts)))]
    accepted = shares + [change for change in own if change not in fixed and _is_of(change, allowed)]
    refused = [*orders, *(change for change in changes if change not in accepted)]
    if not refused:
        return accepted
    more = f" and {len(refused) - MAX_DIFFERENCES_SHOWN} more" if len(refused) > MAX_DIFFERENCES_SHOWN else ""
    if fixed:
        path = _path_of(fixed[0])
        advice = f"Networks, teachers, optimizers, losses that remember and orders cannot be changed in a run ({path})."
    else:
        names = ",".join(_nameable(refused, _names_of(recipe)))
        advice = f"`radio distill --allow-changes {names}` goes on with what is new."
    raise RecipeError(
        f"{str(checkpoint)!r} belongs to another recipe ({'; '.join(refused[:MAX_DIFFERENCES_SHOWN])}{more}): "
        f"resume with the same one, or give another --output. {advice}"
    )


def check_same_dealing(checkpoint: Path, saved: str | None, recipe: Recipe) -> None:
    """Refuse to resume a run of packs whose images were dealt to ranks and passes in another way.

    Args:
        checkpoint: Folder of the checkpoint, for the message.
        saved: The `DEALING` of the version that wrote it; None where it has none.
        recipe: This session's recipe.

    Raises:
        RecipeError: If the run would go on with other images on each rank.
    """
    if saved != DEALING and any(partition.token_budget is not None for partition in recipe.partitions):
        raise RecipeError(
            f"{str(checkpoint)!r} is of a version that dealt the images of a `token_budget` to ranks and passes in "
            "another way: finish the run with that version, or give another --output."
        )


def check_export(output: Path, recipe: Recipe, allowed: Sequence[str] = ()) -> None:
    """Refuse a finished run of another recipe where there are no checkpoints, which would tell: it would be replaced.

    Raises:
        RecipeError: As `check_same_recipe`.
    """
    path = output / RECIPE_FILE
    if (output / "final").is_dir() and path.is_file():
        check_same_recipe(output / "final", load_recipe(str(path)).to_dict(), recipe, allowed)


def _nameable(changes: Iterable[str], known: Collection[str]) -> list[str]:
    """Return names by which changes can be allowed: of what the recipe does not have any more, the section's."""
    paths = [_path_of(change) for change in changes]
    return list(dict.fromkeys(next((name for name in _with_sections(path) if name in known), path) for path in paths))


def _is_of(change: str, names: Iterable[str]) -> bool:
    """Return whether a change is of one of some settings, or of a setting in one of some sections."""
    path = _path_of(change)
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _path_of(change: str) -> str:
    return change.partition(": ")[0]


def warn_of_other_data(checkpoint: Path, saved: str, now: str) -> None:
    """Say what changed if the data is not what a checkpoint was trained on: the run goes on with what there is now.

    Args:
        checkpoint: Folder of the checkpoint, for the message.
        saved: The fingerprint of its data.
        now: Recipe of this session.
    """
    if saved == now:
        return
    logger.warning(
        "%r was trained on other data (%s -> %s; names and state are hashes, state of names, sizes and times): the "
        "run goes on, but differently than with the same data",
        str(checkpoint),
        saved,
        now,
    )


def warn_of_other_arithmetic(checkpoint: Path, saved: Mapping[str, Any]) -> None:
    """Warn if this session rounds differently on a CPU than the one that wrote a checkpoint, and say why.

    Args:
        checkpoint: Folder of the checkpoint, for the message.
        saved: Its entry `arithmetic` of `state.json`.
    """
    changed = [] if torch.cuda.is_available() else differences(saved, arithmetic())
    if changed:
        logger.warning(
            "%r was trained with other rounding (%s): the run goes on, but its weights will differ a little from those "
            "without the stop",
            str(checkpoint),
            "; ".join(changed),
        )


def check_fits(path: Path, saved: Mapping[str, Sequence[int]], wanted: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not of what they are to be loaded into.

    Args:
        path: The file that they are from, for the message.
        saved: Their shapes, by name.
        wanted: Tensors that they are loaded into, by name.

    Raises:
        CheckpointError: If names or shapes differ, as where a teacher's outputs have other channels than before.
    """
    changed = differences(dict(saved), {name: tuple(tensor.shape) for name, tensor in wanted.items()})
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise CheckpointError(
            f"{str(path)!r} is of another network ({changed[0]}{more}): a teacher or the code has changed since. Go on "
            "with the same ones, or give another --output."
        )


def load_modules(checkpoint: Path, modules: Mapping[str, nn.Module]) -> None:
    """Load modules, sharded or not, each once it is known to fit.

    Args:
        checkpoint: Folder of an intact checkpoint.
        modules: By the names of their files.

    Raises:
        CheckpointError: If a part is of another network.
    """
    for name, module in modules.items():
        saved, wanted = SavedTensors(checkpoint, name), state_tensors(module)
        check_fits(saved.path, saved.shapes, wanted)
        load_state_tensors(module, {key: saved.read(key, tensor) for key, tensor in wanted.items()})


class CheckpointWriter:
    """Lets every rank write its own files in a thread, into a folder that all see; the first one names it in the end.

    A thread exchanges nothing with other ranks: they agree between two steps, when all are done. After a kill at any
    moment the checkpoints that have a name are whole, and the scratch folder of the one at work is removed by the next
    session.

    Args:
        folder: Folder of all checkpoints of the run.
        num_kept: Newest checkpoints that stay.
    """

    def __init__(self, folder: Path, num_kept: int) -> None:
        self.folder, self.num_kept = folder, num_kept
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        self._state: dict[str, Any] = {}
        self._written: Future[dict[str, FileFacts]] | None = None

    @property
    def is_busy(self) -> bool:
        """True if this rank still writes."""
        return self._written is not None and not self._written.done()

    def begin(self, state: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]) -> None:
        """Start to write a checkpoint, once the one before is finished; all ranks must take part.

        Args:
            state: Plain data for `state.json`; `state["step"]` names the checkpoint.
            files: Writers of this rank's files by name. What they write must not change any more.

        Raises:
            WriteError: If the one before cannot be written.
        """
        self.finish()
        self._state = dict(state)
        self._written = self._threads.submit(self._write, files)

    def finish(self) -> None:
        """Wait until all ranks have written, and let the checkpoint appear; nothing if none is pending.

        Raises:
            WriteError: If it cannot be written, on all ranks; older checkpoints are intact.
        """
        if self._written is None:
            return
        error = self._written.exception()
        if not isinstance(error, WriteError | None):
            raise error
        report = {} if error else self._written.result()
        self._written = None
        reports = of_all_ranks((report, str(error) if error else None))
        on_first_rank(lambda: self._complete(reports))

    def _path(self) -> Path:
        return checkpoint_path(self.folder, self._state["step"])

    def _scratch(self) -> Path:
        """Return the folder that is filled, whose name all ranks know; `remove_partial` clears it up after a kill."""
        return self.folder / f"{TEMPORARY_PREFIX}{self._path().name}"

    def _write(self, files: Mapping[str, Callable[[Path], object]]) -> dict[str, FileFacts]:
        scratch = self._scratch()
        with one_line_errors(self._path()):
            scratch.mkdir(parents=True, exist_ok=True)
            for name, write in files.items():
                write(scratch / name)
                write_through(scratch / name)
            return describe_files(scratch, files)

    def _complete(self, reports: list[tuple[dict[str, FileFacts], str | None]]) -> None:
        """End what all ranks have written, then remove the oldest checkpoints, and later ones, which were damaged."""
        scratch, path = self._scratch(), self._path()
        errors = [error for _, error in reports if error is not None]
        if errors:
            shutil.rmtree(scratch, ignore_errors=True)
            raise WriteError(errors[0])
        with one_line_errors(path):
            (scratch / "state.json").write_text(json.dumps(self._state, indent=2), encoding="utf-8")
            write_manifest(scratch, {name: facts for files, _ in reports for name, facts in files.items()})
            move_into_place(scratch, path)
            shutil.rmtree(scratch, ignore_errors=True)  # what had the same name, if there was such
        all_there = list_checkpoints(self.folder)
        up_to_now = [each for each in all_there if each <= path]
        for other in [*up_to_now[: -self.num_kept], *all_there[len(up_to_now) :]]:
            with scratch_folder(self.folder) as leaving:  # what has a checkpoint's name is never half of one
                os.replace(other, leaving / other.name)


OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class RunState:
    """The parts of a run that change from step to step, sharded or not.

    Attributes:
        modules: Modules that are saved as `NAME.safetensors`, by that name, or in parts as `tensor_files` names them.
        optimizer: Saved as `optimizer.safetensors`.
        skipped: The count of skipped steps.
        source: Knows its place in the data, on each rank its own.
        copies: Memory for what is written.
    """

    modules: Mapping[str, nn.Module]
    optimizer: Optimizer
    skipped: SkippedSteps
    source: TargetSource
    copies: HostCopies = field(default_factory=HostCopies)

    def save(self, writer: CheckpointWriter, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Begin to write a checkpoint of the present state, which may change as soon as this returns.

        Args:
            writer: The run's writer; every rank writes its part.
            facts: Further content of `state.json`, `step` among it.

        Returns:
            How far each rank has read the data.

        Raises:
            WriteError: If the checkpoint before cannot be written; older ones are intact.
        """
        writer.finish()  # whose copies are overwritten now
        tensors = {name: state_tensors(module) for name, module in self.modules.items()}
        tensors[OPTIMIZER] = optimizer_tensors(self.optimizer)
        rank, num_ranks = rank_and_count()
        files, first = {}, 0
        for name, values in tensors.items():
            own, first = writers_of(name, values, self.copies, rank=rank, num_ranks=num_ranks, first=first)
            files |= own
        positions = of_all_ranks(self.source.state_dict())
        counts = {"skipped_steps": self.skipped.state_dict(), "places_in_data": positions}
        writer.begin({**facts, **counts, "arithmetic": arithmetic()}, files)
        return positions

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Load a checkpoint that is intact, each part once it is known to fit; return its `state.json`.

        Raises:
            CheckpointError: If a part is of another network.
        """
        load_modules(checkpoint, self.modules)
        saved = SavedTensors(checkpoint, OPTIMIZER)
        moments = {key: shape for key, shape in saved.shapes.items() if shape}
        parameters = parameters_of_moments(self.optimizer, moments)
        check_fits(saved.path, moments, parameters)
        load_optimizer_tensors(self.optimizer, {key: saved.read(key, parameters.get(key)) for key in saved.shapes})
        state = read_state(checkpoint)
        self.skipped.load_state_dict(state["skipped_steps"])
        self.source.load_state_dict(state["places_in_data"])
        return state
