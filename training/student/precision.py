"""Which precision a CPU is faster in: bfloat16 takes a quarter of the time of float32 on some, twice it on others."""

import dataclasses
import time

import torch
from torch.nn import functional as F

from training.recipe import Recipe


_SHAPE = (4096, 768, 768)  # our choice: rows, inputs and outputs of a linear layer large enough for its full speed
_RUNS = 5  # our choice: the fastest of a few calls is stable enough to tell factors of two apart


def is_bfloat16_faster() -> bool:
    """Time one linear layer of this machine's CPU in both precisions, for some tens of milliseconds."""
    return _linear_seconds(torch.bfloat16) < _linear_seconds(torch.float32)


@torch.no_grad()
def _linear_seconds(dtype: torch.dtype) -> float:
    rows, inputs, outputs = _SHAPE
    hidden, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    F.linear(hidden, weight)  # the first call sets the kernel up
    seconds = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        F.linear(hidden, weight)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def in_faster_precision(recipe: Recipe) -> Recipe:
    """Return the recipe with student and teachers in float32 if this machine has a CPU only that is faster so."""
    if torch.accelerator.is_available() or is_bfloat16_faster():
        return recipe
    teachers = [dataclasses.replace(entry, precision="float32") for entry in recipe.teachers]
    return dataclasses.replace(recipe, mixed_precision="no", teachers=teachers)
