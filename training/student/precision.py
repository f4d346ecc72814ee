"""Which precision a CPU is faster in: bfloat16 takes a quarter of the time of float32 on some, twice it on others."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from foundation.machine.timing import fastest_seconds
from training.recipe import Recipe


_SHAPE = (4096, 768, 768)  # our choice: rows, inputs and outputs of a linear layer large enough for its full speed
_RUNS = 5  # our choice: the fastest of a few calls is stable enough to tell factors of two apart


@torch.no_grad()
def is_bfloat16_faster() -> bool:
    """Time one linear layer on this machine's CPU in both precisions, for some tens of milliseconds."""
    layers = {dtype: _linear(dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = fastest_seconds(layers, min_rounds=_RUNS)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _linear(dtype: torch.dtype) -> Callable[[], Tensor]:
    rows, inputs, outputs = _SHAPE
    return partial(F.linear, torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype))


def in_faster_precision(recipe: Recipe) -> Recipe:
    """Return the recipe with student and teachers in float32 if this machine has a CPU only that is faster so."""
    if torch.accelerator.is_available() or is_bfloat16_faster():
        return recipe
    teachers = [entry.replace(precision="float32") for entry in recipe.teachers]
    return recipe.replace(mixed_precision="no", teachers=teachers)
