"""Weights by how hard each loss pulls at what all teachers share: `gradnorm`."""

import contextlib
import threading
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from foundation.ranks import sum_over_ranks
from modeling_radio import RadioModel
from training.balancing.base import MIN_LOSS, LossTerm, RelativeRates, bounded, teacher_of
from training.recipe import Recipe
from training.views.batches import Batch


RATE_POWER = 0.5
"""GradNorm's alpha, how strongly a teacher that is learned slowly gains. Our choice, within the range that it tries."""


class GradNorm(RelativeRates):
    """Weights with which each loss pulls at the trunk's last tokens in proportion to its inverse training rate^0.5.

    GradNorm moves weights toward that by gradient descent; here they are set to where it ends, with a mean of 1 in each
    group, and bounded like adaptive weights: a loss that hardly pulls any more would take all of its group. Its
    gradients are by shared weights, ours by shared outputs: parts of a step and ranks add up exactly, and one pass back
    through the heads is enough for each loss.

    References:
        Chen et al., ICML 2018, https://arxiv.org/abs/1711.02257
    """

    norms: Tensor

    def __init__(self, recipe: Recipe, has_summary: Mapping[str, bool], device: torch.device) -> None:
        super().__init__(recipe, has_summary, device)
        self.register_buffer("norms", torch.zeros_like(self.weights))
        self._of_thread = threading.local()  # passes may run at the same time
        self._noted: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    @contextlib.contextmanager
    def watching(self, student: RadioModel) -> Iterator[None]:
        """Keep the tokens that the trunk passes to all heads."""

        def keep(_module: object, _arguments: object, output: tuple[Tensor, ...]) -> None:
            self._of_thread.tokens = output[0]

        hook = student.radio_model.model.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def weigh(self, batch: Batch, terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
        """Note the gradients of the losses and return each times its weight."""
        tokens, self._of_thread.tokens = self._of_thread.tokens, None
        if tokens.requires_grad:  # not while the trunk is frozen
            squares = torch.zeros_like(self.weights)
            share = len(batch) / len(batch.all_tokens)
            for place, name in enumerate(self.names):
                if name in terms and teacher_of(name) in batch.teachers:
                    (gradient,) = torch.autograd.grad(terms[name].value, tokens, retain_graph=True)
                    squares[place] = (share * gradient.double()).square().sum()
            self._noted[batch.partition, batch.rows] = squares
        return super().weigh(batch, terms)

    def see_step(self, losses: Tensor, is_valid: Tensor) -> None:
        """Average the gradients' lengths as the losses are."""
        none = torch.zeros_like(self.weights)
        squares = sum_over_ranks(torch.stack([none, *(self._noted[key] for key in sorted(self._noted))]).sum(0))
        self._noted = {}
        norms = squares.sqrt()
        decay = torch.where(self.norms > 0, 1 - 1 / self.period_steps, 0.0)
        mean = decay * self.norms + (1 - decay) * norms
        self.norms.copy_(torch.where(is_valid & torch.isfinite(norms) & (norms > 0), mean, self.norms))

    def follow(self, step: int, rates: Tensor) -> None:
        """Ask for gradients in proportion to the rates."""
        pulls = rates**RATE_POWER / self.norms.clamp(min=MIN_LOSS)
        self.targets.copy_(torch.where((self.norms > 0).all(), self.by_group(bounded, pulls), self.targets))
