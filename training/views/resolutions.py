"""Which resolution a step has: drawn from the seed and the step, so the same on every rank and after a restart."""

from collections.abc import Sequence

import torch

from foundation.seeds import make_generator


def draw_size(sizes: Sequence[int], probabilities: Sequence[float] | None, seed: int, *labels: int | str) -> int:
    """Draw one of the sizes.

    Args:
        sizes: Candidates in pixels.
        probabilities: Their weights, not all zero; None for equal ones.
        seed: The run's seed.
        labels: What is drawn, for example `("size", partition, step)`.

    Returns:
        The drawn size in pixels.
    """
    weights = torch.tensor([1.0] * len(sizes) if probabilities is None else probabilities, dtype=torch.float32)
    index = torch.multinomial(weights, 1, generator=make_generator(seed, *labels))
    return sizes[int(index)]
