"""The interface of what loads views, and how far it may reduce images before they are looked at."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from training.data.decoding import LeastScale
from training.recipe import Recipe
from training.views.batches import Batch
from training.views.regions import Seen, Sight, least_scale


Plan = Callable[[], Iterable[Batch]]
Sights = Callable[[Batch], list[Sight]]


class ViewLoader(Protocol):
    """Loads what is seen of the images of planned batches, in order, ahead of time."""

    def views(self, plan: Plan, sights: Sights) -> Iterator[tuple[Batch, list[Seen]]]:
        """Yield each batch with what was seen of it.

        The data workers crop and resize, each crop once, so that only what a viewer takes in travels.

        Args:
            plan: Gives the batches; may be called more than once.
            sights: Says for each image of a batch what is to be seen of it.

        Yields:
            The batch, and for each group of it what was seen.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return how far this rank has read the data, up to the last batch that was yielded, as JSON values."""

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Resume from what `state_dict` returned on each rank."""


def scale_for(sight: Sight, recipe: Recipe) -> LeastScale | None:
    """Return how far an image may be reduced before it is looked at; None where pixels are to be exact."""
    return (lambda size: least_scale(size, sight, recipe.views)) if recipe.data.jpeg_drafts else None
