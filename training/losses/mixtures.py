"""One loss of a registry, or several of them at once, each with a weight."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor


Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def chosen_loss(chosen: str | Mapping[str, float], losses: Mapping[str, Loss]) -> Loss | Callable[..., Tensor]:
    """Return a loss by name, or the sum of several times their weights, which takes the same arguments.

    Args:
        chosen: A name, or weights by name, at least one.
        losses: The registry.
    """
    if isinstance(chosen, str):
        return losses[chosen]

    weights = dict(chosen)

    def weighted_sum(*arguments: object) -> Tensor:
        values = [weight * losses[name](*arguments) for name, weight in weights.items()]
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total

    return weighted_sum
