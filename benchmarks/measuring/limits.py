"""What the machine can do at best, measured: matrix products and memory."""

from typing import NamedTuple

import torch

from benchmarks.measuring.turns import take_turns


PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Our choices: large enough for full speed, and beyond what caches hold."""
ROUNDS = 5


class Limits(NamedTuple):
    """The fastest of some rounds.

    Attributes:
        gflops: Floating-point operations of a square matrix product, 1e9 a second.
        gigabytes: Read and written by a copy, 1e9 bytes a second.
    """

    gflops: float
    gigabytes: float


@torch.inference_mode()
def measure_limits(device: str, dtype: torch.dtype, side: int | None = None, num_bytes: int | None = None) -> Limits:
    """Return the limits of a device for a data type, at the present number of threads.

    Args:
        device: "cpu" or "cuda".
        dtype: Of the matrices.
        side: Of the matrices; by default `PRODUCT_SIDE`.
        num_bytes: That are copied; by default `COPY_BYTES`.
    """
    side, num_bytes = side or PRODUCT_SIDE[device], num_bytes or COPY_BYTES[device]
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls = {"product": lambda: first @ second, "copy": lambda: target.copy_(source)}
    turns = take_turns(calls, min_rounds=ROUNDS, budget_seconds=0, device=device)
    product, copy = (min(turns.seconds[name]) for name in ("product", "copy"))
    return Limits(2 * side**3 / product / 1e9, 2 * num_bytes / copy / 1e9)
