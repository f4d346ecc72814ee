"""Losses apart by resolution: an interval's plain mean jumps with how often each of its sizes was drawn."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from training.balancing import GROUPS, teacher_of
from training.recipe import PartitionRecipe
from training.views.batches import Batch


class LossesBySize:
    """Adds up the losses of the steps of an interval, apart for each size of the student's images.

    Packed steps have images of many sizes each, so that the mean of an interval says enough: they are passed over.

    Args:
        partitions: The recipe's.
    """

    def __init__(self, partitions: list[PartitionRecipe]) -> None:
        self.sizes = sorted({size for each in partitions if each.token_budget is None for size in each.sizes_px})
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._counts: dict[str, dict[int, float]] = {}
        self._step: list[tuple[str, int, Tensor, float]] = []

    def add(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Add a part of a step; only what its teachers are compared by.

        Args:
            batch: The part.
            losses: By name: "features/TEACHER", "summary/TEACHER" or "mesa", "tap_features/TEACHER@BLOCK" of taps;
                others are passed over.
        """
        if batch.size_px is None:
            return
        share = len(batch) / batch.num_images
        for name, loss in losses.items():
            if name.partition("/")[0] not in LOSS_KINDS:
                continue
            teacher = teacher_of(name)
            is_learned = not teacher or teacher in batch.teachers  # others have a loss of zero, for their gradients
            self._step.append((name, batch.size_px, loss.detach() * share, share if is_learned else 0.0))

    def end_step(self, *, is_counted: bool) -> None:
        """Take what was added since the last call into the interval, or forget it."""
        for name, size, loss, share in self._step if is_counted else ():
            sums, counts = self._sums.setdefault(name, {}), self._counts.setdefault(name, {})
            sums[size] = sums.get(size, 0.0) + loss
            counts[size] = counts.get(size, 0.0) + share
        self._step = []

    def end_interval(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the mean losses over all steps and ranks since the last call; all ranks must take part.

        Returns:
            By `KIND@SIZE/TEACHER`, for example "features@128px/dino_v3"; "mesa@128px" has no teacher. Nothing for sizes
            that were not drawn, and nothing at all in a run at one size, whose plain mean says the same.
        """
        sums, counts = self._sums, self._counts
        self._sums, self._counts = {}, {}
        if len(self.sizes) < 2:
            return {}
        names = list(dict.fromkeys(gather_object(list(sums))))  # ranks that are bound to a partition may know others
        if not names:
            return {}
        zero = torch.zeros((), device=accelerator.device)
        totals = torch.stack([sums.get(name, {}).get(size, zero).float() for name in names for size in self.sizes])
        weights = zero.new_tensor([counts.get(name, {}).get(size, 0.0) for name in names for size in self.sizes])
        both = accelerator.reduce(torch.stack([totals, weights]), reduction="sum")
        keys = [sized_name(name, size) for name in names for size in self.sizes]
        rows = zip(keys, *both.tolist(), strict=True)
        return {key: total / weight for key, total, weight in rows if weight > 0}


LOSS_KINDS = (*GROUPS, "mesa")


def sized_name(name: str, size: int) -> str:
    """Return the name of a loss at a size, "features@128px/dino_v3" for "features/dino_v3"."""
    kind, slash, teacher = name.partition("/")
    return f"{kind}@{size}px{slash}{teacher}"
