"""The student's forward pass of a batch: packs of images of several sizes, and the number of tokens of RADIO1D."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio import RadioConfig
from modeling_radio.outputs_radio import RadioAdaptorOutput, RadioModelOutput
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.views.plan import PlannedBatch


NUM_DRAWS = 5
"""Uniform numbers behind one count; only "beta" needs more than the first."""
_BETA_RANK = 2


def counts_from(draw: Literal["triangular", "uniform", "beta", "fixed"], draws: Tensor, available: int) -> list[int]:
    """Return the number of tokens of each image, in [1, `available`].

    - "triangular": density 2 - 2x, few tokens most often (https://arxiv.org/abs/2607.03624, better than uniform there).
    - "uniform".
    - "beta": Beta(2, 4), the second smallest of five uniform numbers. Its mode is a quarter, NVIDIA's default; its
      width is our choice.
    - "fixed": all tokens.

    Args:
        draw: The distribution.
        draws: Uniform numbers in [0, 1), `(images, NUM_DRAWS)`.
        available: Tokens of an image.
    """
    if draw == "fixed":
        return [available] * len(draws)
    draws = draws.double()
    if draw == "triangular":
        counts = torch.round((1 - draws[:, 0].sqrt()) * (available - 1)) + 1
    else:
        shares = draws[:, 0] if draw == "uniform" else draws.kthvalue(_BETA_RANK, dim=1).values
        counts = torch.round(shares * available)
    return [int(count) for count in counts.clamp(min(1, available), available)]


def token_counts(recipe: Recipe, config: RadioConfig, batch: PlannedBatch, height: int, width: int) -> list[int] | None:
    """Return the number of tokens of each image of a batch in a step; None if the recipe drops none.

    The numbers follow from the run's seed, the step and the image's row in it, whatever rank and part has the image.

    Args:
        recipe: Its `student.num_tokens` is the distribution.
        config: The student's.
        batch: The batch.
        height: Height of the student's images in pixels.
        width: Their width in pixels.
    """
    draw = recipe.student.num_tokens
    if draw is None or draw == "fixed":
        return None
    num_patches = height // config.patch_size * (width // config.patch_size)
    return counts_from(draw, batch.uniform("num_tokens", NUM_DRAWS), num_patches // 4**config.num_mergings)


def check_packing(recipe: Recipe, config: RadioConfig) -> None:
    """Refuse a recipe that wants the impossible of packed or merged tokens, before anything is built.

    Raises:
        RecipeError: If packs are compiled, tokens are dropped of a student that has no decoder, or merged ones are
            packed, compiled or read by inner heads.
    """
    student = recipe.student
    packed = [partition.name for partition in recipe.partitions if partition.token_budget is not None]
    if student.compile and packed:
        raise RecipeError(
            f"`student.compile` must be false with `partitions.{packed[0]}.token_budget`, got true: the segments that "
            "the tokens of a pack attend within differ at every step."
        )
    if not config.num_mergings:
        if student.num_tokens is not None:
            raise RecipeError(
                f"`student.num_tokens` must be null without `student.config.downscale_levels`, got "
                f"{student.num_tokens!r}: this student has one token for each patch."
            )
        return
    if packed:
        raise RecipeError(
            f"`partitions.{packed[0]}.token_budget` must be null with `student.config.downscale_levels`, got a number. "
            "Merged tokens are not packed: give `batch_size`."
        )
    if student.compile:
        raise RecipeError("`student.compile` must be false with `student.config.downscale_levels`, got true.")
    recipe.refuse_inner_heads("with `student.config.downscale_levels`")


class StudentOutput(NamedTuple):
    """Output of the student for a batch.

    Attributes:
        backbone: Maps of each group of images, `(images, hidden, rows, cols)`.
        features: By adaptor, for each group `(images, feature_dim, rows, cols)`.
        summaries: By adaptor `(batch, summary_dim)`, or None.
    """

    backbone: list[Tensor]
    features: dict[str, list[Tensor]]
    summaries: dict[str, Tensor | None]


def forward_groups(
    student: Callable[..., RadioModelOutput],
    groups: Sequence[Tensor],
    patch_size: int,
    head_grids: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    **options: Any,
) -> StudentOutput:
    """Run the student once over all images of a batch.

    Args:
        student: A `RadioModel`, possibly wrapped for several ranks.
        groups: Images of one size each, `(images, 3, height, width)` in [0, 1].
        patch_size: The student's patch in pixels.
        head_grids: By adaptor that answers on other grids than the images', those of each group.
        options: Further arguments of `RadioModel.forward`; `draws` in the order of the images.
    """
    feature_format = "NCHW" if len(groups) == 1 else "NLC"
    output = student(**pack_groups(groups, patch_size), feature_format=feature_format, return_dict=True, **options)
    grids = [(len(images), *(side // patch_size for side in images.shape[2:])) for images in groups]

    def to_groups(features: Tensor | None, own: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        if len(groups) == 1:
            return [cast(Tensor, features)]
        counted = grids if own is None else [(len(images), *grid) for images, grid in zip(groups, own, strict=True)]
        return _split(cast(Tensor, features), counted)

    adaptors, head_grids = cast(dict[str, RadioAdaptorOutput], output.adaptors), head_grids or {}
    features = {name: to_groups(head.features, head_grids.get(name)) for name, head in adaptors.items()}
    return StudentOutput(to_groups(output.features), features, {name: head.summary for name, head in adaptors.items()})


def pack_groups(groups: Sequence[Tensor], patch_size: int) -> dict[str, Tensor]:
    """Return images of one size each as arguments of one forward pass: packed if there are several sizes."""
    if len(groups) == 1:
        return {"pixel_values": groups[0]}
    patches = [F.pixel_unshuffle(images, patch_size) for images in groups]  # (images, channels * patch**2, rows, cols)
    return {
        "pixel_values": torch.cat([each.flatten(2).transpose(1, 2).flatten(0, 1) for each in patches]),
        "image_grid_hw": torch.tensor([each.shape[2:] for each in patches for _ in range(len(each))]),
    }


def _split(tokens: Tensor, grids: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Cut `(total_tokens, dim)` into maps; an adaptor that upsamples has a whole number of tokens along each patch."""
    num_patches = sum(count * rows * cols for count, rows, cols in grids)
    factor = round((len(tokens) / num_patches) ** 0.5)
    parts = tokens.split([count * rows * cols * factor**2 for count, rows, cols in grids])
    return [
        part.unflatten(0, (count, rows * factor, cols * factor)).movedim(-1, 1)
        for part, (count, rows, cols) in zip(parts, grids, strict=True)
    ]
