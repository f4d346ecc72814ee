"""Contrastive losses: how an image lies among others, by its summary or its cells, one number for each image."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


TEMPERATURE = 0.07
"""CRD's, https://arxiv.org/abs/1910.10699."""


def relational_losses(student: Tensor, teacher: Tensor, candidates: Tensor, places: Tensor) -> Tensor:
    """Return the divergence between the teacher's and the student's similarities to the same candidates.

    Near duplicates among the candidates are as near to the student as they are to the teacher.

    Args:
        student: `(batch, C)` of length 1, as `centered` gives them.
        teacher: `(batch, C)`, likewise, of the same images.
        candidates: `(candidates, C)`, the teacher's, likewise; those of the batch among them.
        places: `(batch,)`, where among the candidates each image is; not used.

    Returns:
        `(batch,)`, Kullback-Leibler divergences of softmaxes over the candidates.

    References:
        "CRD" of CLIP-KD, https://arxiv.org/abs/2307.12732
    """
    del places
    wanted = (teacher @ candidates.T / TEMPERATURE).log_softmax(1)
    answered = (student @ candidates.T / TEMPERATURE).log_softmax(1)
    return F.kl_div(answered, wanted, reduction="none", log_target=True).sum(1)


def info_nce_losses(student: Tensor, teacher: Tensor, candidates: Tensor, places: Tensor) -> Tensor:
    """Return how far the student is from finding its own image among the candidates: a cross entropy for each image.

    Arguments and shapes are those of `relational_losses`. The other direction, each teacher's summary among those of
    the student, would need the student's answers in all parts of a step at once.

    References:
        CRD, Tian et al., https://arxiv.org/abs/1910.10699
    """
    del teacher
    return F.cross_entropy(student @ candidates.T / TEMPERATURE, places, reduction="none")


def cell_losses(student: Tensor, candidates: Tensor, places: Tensor, is_seen: Tensor) -> Tensor:
    """Return how far the student's cells are from finding their own among the candidates: a mean of cross entropies.

    Args:
        student: `(images, cells, C)`, its answers of any length.
        candidates: `(candidates, C)`, the teacher's of length 1; rows of 0 are none.
        places: `(images, cells)`, where among the candidates each cell is.
        is_seen: `(images, cells)`, which of them count.

    Returns:
        `(images,)`; 0 for an image of which no cell counts.

    References:
        DenseCL, https://arxiv.org/abs/2011.09157, and the "internal patches" of CUT, https://arxiv.org/abs/2007.15651:
        other cells of the image are candidates as well. CUT's temperature is that of CRD.
    """
    logits = F.normalize(student, dim=-1) @ candidates.T / TEMPERATURE
    logits = logits.masked_fill(~candidates.any(1), -torch.inf)
    own = logits.gather(2, places[..., None])[..., 0]
    # What is not seen has no own candidate: it must have no gradient either, not one times 0.
    losses = torch.where(is_seen, logits.logsumexp(2) - torch.where(is_seen, own, 0.0), 0.0)
    return losses.sum(1) / is_seen.sum(1).clamp(min=1)


def centered(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Return directions seen from a mean direction: of length 1, spread all around where summaries fill a cone.

    Args:
        embeddings: `(batch, C)` of any length.
        mean: `(C,)`, the mean of such embeddings at length 1.
    """
    return F.normalize(F.normalize(embeddings.float(), dim=-1) - mean.float(), dim=-1)


SUMMARY_CONTRASTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "relational": relational_losses,
    "info_nce": info_nce_losses,
}
