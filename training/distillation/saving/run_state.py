"""What a checkpoint holds of a run: all that changes from step to step, each rank's part of it, loaded once it fits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from foundation.checked_tensors import load_optimizer_tensors, optimizer_tensors
from foundation.ranks import of_all_ranks
from training.distillation.saving.checkpoint_writer import CheckpointWriter
from training.distillation.saving.checkpoints import check_fits, read_state
from training.distillation.saving.tensor_files import SavedTensors, writers_of
from training.distillation.sharding import (
    load_state_tensors,
    parameters_of_moments,
    state_tensors,
)
from training.distillation.skipped_steps import SkippedSteps
from training.targets.examples import TargetSource


OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class RunState:
    """The parts of a run that change from step to step, sharded or not.

    Attributes:
        modules: What is saved as `NAME.safetensors`, by that name, or in parts as `tensor_files` names them.
        optimizer: Saved as `optimizer.safetensors`.
        skipped: The count of skipped steps.
        source: Knows its place in the data, on each rank its own.
    """

    modules: Mapping[str, nn.Module]
    optimizer: Optimizer
    skipped: SkippedSteps
    source: TargetSource

    def save(
        self, writer: CheckpointWriter, facts: Mapping[str, Any], *, is_main_process: bool
    ) -> list[dict[str, Any]]:
        """Begin to write a checkpoint of the present state, which may change as soon as this returns.

        Args:
            writer: Of the run; every rank writes its part.
            facts: What else belongs into `state.json`, `step` among it.
            is_main_process: Whether to write what is not sharded.

        Returns:
            How far each rank has read the data.

        Raises:
            WriteError: If the checkpoint before cannot be written; older ones are intact.
        """
        writer.finish()  # so that no more than one copy is in memory
        tensors = {name: state_tensors(module) for name, module in self.modules.items()}
        tensors[OPTIMIZER] = optimizer_tensors(self.optimizer)
        files = {}
        for name, values in tensors.items():
            files |= writers_of(name, values, is_main_process=is_main_process)
        places = of_all_ranks(self.source.state_dict())
        counts = {"skipped_steps": self.skipped.state_dict(), "places_in_data": places}
        writer.begin({**facts, **counts, "torch_version": torch.__version__}, files)
        return places

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Load a checkpoint that is intact, each part once it is known to fit; return its `state.json`.

        Raises:
            CheckpointError: If a part is of another network.
        """
        for name, module in self.modules.items():
            saved, wanted = SavedTensors(checkpoint, name), state_tensors(module)
            check_fits(saved.path, saved.shapes, wanted)
            load_state_tensors(module, {key: saved.read(key, tensor) for key, tensor in wanted.items()})
        saved = SavedTensors(checkpoint, OPTIMIZER)
        moments = {key: shape for key, shape in saved.shapes.items() if shape}
        parameters = parameters_of_moments(self.optimizer, moments)
        check_fits(saved.path, moments, parameters)
        load_optimizer_tensors(self.optimizer, {key: saved.read(key, parameters.get(key)) for key in saved.shapes})
        state = read_state(checkpoint)
        self.skipped.load_state_dict(state["skipped_steps"])
        self.source.load_state_dict(state["places_in_data"])
        return state
