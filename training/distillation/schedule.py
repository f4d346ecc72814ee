"""The schedule of the learning rate: linear warm-up, then half a cosine."""

import math


def cosine_with_warmup(step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the learning rate of a step as a fraction of its peak.

    Linear from `1 / warmup_steps` to 1, then half a cosine that reaches 0 at `num_steps`.

    Args:
        step: 0-based step, in [0, num_steps).
        num_steps: Steps of the whole run (or stage: every stage of the published recipes starts anew).
        warmup_steps: Steps of the linear rise; 0 for none.

    Returns:
        A factor in (0, 1].

    References:
        SGDR, https://arxiv.org/abs/1608.03983; used by PHI-S, table 10, https://arxiv.org/abs/2410.01680
    """
    if step < warmup_steps:
        return linear_warmup(step, warmup_steps)
    progress = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def linear_warmup(step: int, warmup_steps: int) -> float:
    """Return a factor that rises from `1 / warmup_steps` at step 0 to 1, and is 0 before.

    Args:
        step: Counted from where the rise begins.
        warmup_steps: Steps of the rise; 0 for none.
    """
    if step < 0:
        return 0.0
    return min((step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0
