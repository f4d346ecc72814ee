"""Compares outputs of two models, case by case."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import UserError
from model_cards.parity import Agreement


class ParityError(UserError):
    """Outputs that cannot be compared, or are not equal; the message says which."""


def compare_outputs(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[Agreement]:
    """Compare outputs under `SIZE/WINDOW/NAME/KIND`, in the order of theirs.

    Raises:
        ParityError: If one side lacks an output, their shapes differ, or numbers are not finite.
    """
    alone = sorted(theirs.keys() ^ ours.keys())
    if alone:
        raise ParityError(f"Only one of the two answers {alone[0]}: {len(alone)} outputs cannot be compared.")
    return [_compare(key, theirs[key].double(), ours[key].double()) for key in theirs]


def _compare(key: str, theirs: Tensor, ours: Tensor) -> Agreement:
    if theirs.shape != ours.shape:
        raise ParityError(f"{key} is {tuple(ours.shape)}, and NVIDIA's {tuple(theirs.shape)}.")
    for whose, value in (("NVIDIA's", theirs), ("Ours", ours)):
        if not torch.isfinite(value).all():
            raise ParityError(f"{whose} {key} is not finite. Choose another `dtype`.")
    size, window, name, kind = key.split("/")
    difference = ours - theirs
    return Agreement(
        size=size,
        window=None if window == "None" else int(window),
        output=kind if name == "backbone" else f"{name} {kind}",
        max_abs=difference.abs().max().item(),
        relative=(difference.norm() / theirs.norm().clamp_min(torch.finfo(torch.float64).tiny)).item(),
        cosine=F.cosine_similarity(theirs, ours, dim=-1, eps=torch.finfo(torch.float64).tiny).min().item(),
    )
