"""A tiny teacher with a list of blocks."""

from collections.abc import Iterable

import torch
from tiny_distillation import TinyTeacher
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from modeling_radio.training.teachers.outputs import TeacherOutput


class DeepTeacher(TinyTeacher):
    """A `TinyTeacher` whose patches then pass through residual blocks."""

    def __init__(self, name: str, *, source: str | None = None, feature_dim: int = 8, num_blocks: int = 4) -> None:
        super().__init__(name, feature_dim=feature_dim)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(feature_dim, feature_dim) for _ in range(num_blocks))
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        features = super().encode(pixel_values).features.movedim(1, -1)
        for layer in self.layers:
            features = features + layer(features).relu()
        return TeacherOutput(None, features.movedim(-1, 1))


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Return the memory of the weights that this rank holds."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in parameters)
