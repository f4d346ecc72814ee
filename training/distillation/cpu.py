"""Training on a CPU: several passes at once, and freed memory that is kept for the next tensor."""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from modeling_radio.core.machine import sharing_threads
from modeling_radio.training.recipes.recipe import Recipe


T = TypeVar("T")
Losses = dict[str, Tensor]

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's numbers of the two parameters, malloc.h
_LARGEST_MMAP_THRESHOLD = 2**25  # of glibc on 64 bits; larger allocations are always maps of their own
_NO_TRIMMING = 2**31 - 1


class ParallelPasses:
    """Forward and backward passes on threads; their gradients are added in the order of the parts.

    The result equals that of passes one after the other, up to the rounding of their sum.

    Args:
        num_at_once: Passes that run at the same time, each on its share of torch's threads.
    """

    def __init__(self, num_at_once: int) -> None:
        self._pool = sharing_threads(num_at_once, "pass")

    def run(
        self, parts: Sequence[T], work: Callable[[T], tuple[Tensor, Losses]], parameters: Sequence[nn.Parameter]
    ) -> Iterator[Losses]:
        """Add the gradients of every part's loss to those of the parameters.

        Args:
            parts: Arguments of `work`.
            work: Returns what to differentiate, and what to yield.
            parameters: By what; those that a loss does not reach get nothing from it.

        Yields:
            What `work` returned, in the order of the parts.
        """

        def differentiate(part: T) -> tuple[tuple[Tensor | None, ...], Losses]:
            total, losses = work(part)
            return torch.autograd.grad(total, list(parameters), allow_unused=True), losses

        for gradients, losses in self._pool.map(differentiate, parts):
            _add_gradients(parameters, gradients)
            yield losses


def parallel_passes(recipe: Recipe, accelerator: Accelerator) -> ParallelPasses | None:
    """Return what runs `student.passes_at_once`; None where that is 1, or would change more than the time.

    Ranks that exchange gradients hook into a single backward pass, and noise and dropout draw from torch's one
    generator in the order of the passes. On a GPU passes would only wait for each other.
    """
    is_random = recipe.damp.sigma > 0 or any("dropout" in name for name in recipe.student.config)
    is_alone = accelerator.distributed_type == DistributedType.NO and accelerator.device.type == "cpu"
    num_at_once = recipe.student.passes_at_once
    return ParallelPasses(num_at_once) if num_at_once > 1 and is_alone and not is_random else None


def _add_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    sums, terms = [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            sums.append(parameter.grad)
            terms.append(gradient)
    if sums:
        torch._foreach_add_(sums, terms)


def keep_freed_memory() -> bool:
    """Let this process keep freed memory below 32 MiB a piece for the next tensor; return whether that was possible.

    By default glibc returns large pieces to the system at once, so that every step's activations are mapped, and set to
    zero by the system, page by page: measured, 18,000 page faults in a step of the demo, 5 % of its CPU time.
    Other C libraries have no such switch and are left alone. The process never shrinks below the most that it used.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(set_option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and set_option(_TRIM_THRESHOLD, _NO_TRIMMING))
