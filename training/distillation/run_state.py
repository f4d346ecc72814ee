"""What a checkpoint holds of a run: all that changes from step to step, saved whole and loaded once it fits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from training.distillation.checkpoints import check_fits, read_state, save_checkpoint
from training.distillation.sharding import (
    load_whole_optimizer_state,
    load_whole_state_dict,
    moments_of,
    parameters_of_moments,
    state_tensors,
    whole_optimizer_state,
    whole_state_dict,
)
from training.distillation.skipped_steps import SkippedSteps
from training.targets.examples import TargetSource


@dataclass(frozen=True)
class RunState:
    """The parts of a run that change from step to step, sharded or not.

    Attributes:
        modules: What is saved as `NAME.safetensors`, by that name.
        optimizer: Saved as `optimizer.pt`.
        skipped: The count of skipped steps.
        source: Knows its place in the data, on each rank its own.
    """

    modules: Mapping[str, nn.Module]
    optimizer: Optimizer
    skipped: SkippedSteps
    source: TargetSource

    def save(self, folder: Path, facts: Mapping[str, Any], keep: int, *, is_main_process: bool) -> None:
        """Write a checkpoint: every rank gathers, the main process writes.

        Args:
            folder: Of all checkpoints of the run.
            facts: What else belongs into `state.json`, `step` among it.
            keep: Newest checkpoints that stay.
            is_main_process: Whether to write.

        Raises:
            WriteError: If it cannot be written; older checkpoints are intact.
        """
        tensors = {name: whole_state_dict(module) for name, module in self.modules.items()}
        optimizer = whole_optimizer_state(self.optimizer)
        places = gather_object([self.source.state_dict()])

        def write_tensors(checkpoint: Path) -> None:
            for name, values in tensors.items():
                save_file(values, checkpoint / f"{name}.safetensors")
            with (checkpoint / "optimizer.pt").open("wb") as file:  # which says why it cannot be written, unlike a path
                torch.save(optimizer, file)

        if is_main_process:
            counts = {"skipped_steps": self.skipped.state_dict(), "places_in_data": places}
            save_checkpoint(folder, {**facts, **counts, "torch_version": torch.__version__}, write_tensors, keep)

    def load(self, checkpoint: Path) -> dict[str, Any]:
        """Load a checkpoint that is intact, each part once it is known to fit; return its `state.json`.

        Raises:
            CheckpointError: If a part is of another network.
        """
        for name, module in self.modules.items():
            path = checkpoint / f"{name}.safetensors"
            saved = load_file(path)
            check_fits(path, saved, state_tensors(module))
            load_whole_state_dict(module, saved)
        path = checkpoint / "optimizer.pt"
        optimizer_state = torch.load(path, weights_only=True, map_location="cpu")
        moments = moments_of(optimizer_state)
        check_fits(path, moments, parameters_of_moments(self.optimizer, moments))
        load_whole_optimizer_state(self.optimizer, optimizer_state)
        state = read_state(checkpoint)
        self.skipped.load_state_dict(state["skipped_steps"])
        self.source.load_state_dict(state["places_in_data"])
        return state
