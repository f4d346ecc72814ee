"""Random numbers as a pure function of their purpose, so that a restarted run repeats an undisturbed one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *labels: int | str) -> int:
    """Return a seed in [0, 2**63) for one purpose of one run.

    Args:
        seed: The run's seed.
        labels: The purpose of the numbers, for example `("flip", partition, step)`. Different labels give
            independent streams; the same labels give the same stream on every machine and rank.

    Returns:
        A seed for `torch.Generator.manual_seed` or `torch.manual_seed`.
    """
    text = "\x1f".join(str(label) for label in (seed, *labels))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def make_generator(seed: int, *labels: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed`."""
    import torch  # takes seconds, which recipes and `--help` need not wait for

    return torch.Generator().manual_seed(derive_seed(seed, *labels))
