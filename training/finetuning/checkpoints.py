"""Checkpoints of transformers' `Trainer`: sealed when they are whole, the newest intact one found after any crash."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from foundation.files import scratch_folder, write_through
from training.distillation.saving.checkpoints import CheckpointError
from training.distillation.saving.manifests import MANIFEST, find_damage, write_manifest


logger = logging.getLogger(__name__)


class SealCheckpoints(TrainerCallback):
    """Ends each checkpoint with a manifest, once all ranks have written their parts and these are on the disk."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = _checkpoint_path(args, state.global_step)
            write_through(folder)
            write_manifest(folder)


class BestThatIsLeft(TrainerCallback):
    """Finds the best checkpoint in the run's folder, which may have been moved since.

    Where it was damaged and removed, that from which the run goes on takes its place. `Trainer` would go on comparing
    with the metric of what is lost, and save the last state in the end.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.best_metric is None:
            return
        best = _checkpoint_path(args, state.best_global_step)
        if best.is_dir():
            state.best_model_checkpoint = str(best)
            return
        name = f"eval_{args.metric_for_best_model}"
        found = [record for record in state.log_history if name in record and record["step"] == state.global_step]
        state.best_metric, state.best_global_step = (found[-1][name], state.global_step) if found else (None, None)
        state.best_model_checkpoint = str(_checkpoint_path(args, state.global_step)) if found else None


def _checkpoint_path(args: TrainingArguments, step: int | None) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def sealed_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints of a run that were written to their end, oldest first, whether intact or not."""
    return [path for path in _all_checkpoints(output) if (path / MANIFEST).is_file()]


def last_checkpoint(output: Path) -> str | None:
    """Return the newest intact checkpoint of a run, or None if there is none at all.

    What a killed run left half written or half removed goes, and with a line in the log what is damaged.

    Raises:
        CheckpointError: If there are some, all of them damaged. They stay as they are.
    """
    sealed = sealed_checkpoints(output)
    for path in set(_all_checkpoints(output)).difference(sealed):
        _remove(path)
    damages = {path: damage for path in sealed if (damage := find_damage(path)) is not None}
    intact = [path for path in sealed if path not in damages]
    if damages and not intact:
        raise CheckpointError.of_all(output, damages.values())
    for path, damage in damages.items():
        logger.warning("%s: %s is removed, and the run goes on from %s", damage, path.name, intact[-1].name)
        _remove(path)
    return str(intact[-1]) if intact else None


def ends_run(checkpoint: str | Path) -> bool:
    """Return whether a run ended with a checkpoint, after its last step or early, for want of a better metric.

    `Trainer` does not ask: it would train on, a step where the last one lies within an epoch, or until the patience
    is over once more.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    callbacks: Any = state.stateful_callbacks  # those of a file are a dictionary
    control = callbacks.get(TrainerControl.__name__, {}).get("args", {})
    return state.global_step >= state.max_steps or control.get("should_training_stop", False)


def _all_checkpoints(output: Path) -> list[Path]:
    steps = {path: path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in output.glob("checkpoint-*")}
    found = [path for path, step in steps.items() if step.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(steps[path]))


def _remove(path: Path) -> None:
    """Remove a folder that no longer has the name of a checkpoint while it goes."""
    with scratch_folder(path.parent) as scratch:
        os.replace(path, scratch / path.name)
