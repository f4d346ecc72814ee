"""The losses of a batch by name, before they are weighed and added up."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LossTerm(NamedTuple):
    """One loss of one teacher for one batch.

    Attributes:
        weight: The recipe's factor.
        value: Scalar, the mean over the images of the batch; 0 if the teacher does not see them. If it sees some, the
            mean over these times a factor: see `OwnImages`.
        group: "features" or "summary": losses of a teacher in one group get one weight where weights change during the
            run. Dense losses and summaries are apart, or summaries swallow the dense losses (PHI-S, A.8.1). Empty for a
            loss whose weight does not change.
    """

    weight: float
    value: Tensor
    group: str = ""


def zero_term(outputs: Sequence[Tensor], group: str = "") -> LossTerm:
    """Return 0 times a head's outputs, so that DDP finds gradients of a head that no loss uses."""
    return LossTerm(1.0, 0.0 * torch.stack([each.float().mean() for each in outputs]).sum(), group)


def head_of(name: str) -> str:
    """Return the head of a loss with the name `KIND/HEAD`: a teacher's, or `TEACHER@BLOCK` of an auxiliary head."""
    return name.partition("/")[2]


def teacher_of(name: str) -> str:
    """Return the teacher of a loss with the name `KIND/TEACHER` or `KIND/TEACHER@BLOCK`; empty if it has none."""
    return head_of(name).partition("@")[0]
