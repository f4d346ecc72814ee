"""The student's answers for a batch: images of one size as they are, images of several packed into one sequence."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.outputs_radio import RadioAdaptorOutput, RadioModelOutput


class HeadAnswer(NamedTuple):
    """What one adaptor answers.

    Attributes:
        summary: `(batch, summary_dim)`, or None.
        features: For each group of images `(images, feature_dim, rows, cols)`.
    """

    summary: Tensor | None
    features: list[Tensor]


class StudentAnswer(NamedTuple):
    """What the student answers.

    Attributes:
        features: The backbone's, for each group of images `(images, hidden, rows, cols)`.
        adaptors: By name.
    """

    features: list[Tensor]
    adaptors: dict[str, HeadAnswer]


def answer_groups(
    student: Callable[..., RadioModelOutput], groups: Sequence[Tensor], patch_size: int, **options: Any
) -> StudentAnswer:
    """Run the student once over all images of a batch.

    Args:
        student: A `RadioModel`, or what wraps it for several ranks.
        groups: Images of one size each, `(images, 3, height, width)` in [0, 1].
        patch_size: The student's patch in pixels.
        options: Further arguments of `RadioModel.forward`; `draws` in the order of the images.
    """
    inputs = pack_groups(groups, patch_size)
    if len(groups) == 1:
        output = student(**inputs, feature_format="NCHW", return_dict=True, **options)
        return _answer(output, lambda features: [features])
    grids = [(len(images), *(side // patch_size for side in images.shape[2:])) for images in groups]
    output = student(**inputs, return_dict=True, **options)
    return _answer(output, lambda tokens: _split(tokens, grids))


def pack_groups(groups: Sequence[Tensor], patch_size: int) -> dict[str, Tensor]:
    """Return images of one size each as arguments of one pass: as they are where there is one size, else packed."""
    if len(groups) == 1:
        return {"pixel_values": groups[0]}
    patches = [F.pixel_unshuffle(images, patch_size) for images in groups]  # (images, channels * patch**2, rows, cols)
    return {
        "pixel_values": torch.cat([each.flatten(2).transpose(1, 2).flatten(0, 1) for each in patches]),
        "image_grid_hw": torch.tensor([each.shape[2:] for each in patches for _ in range(len(each))]),
    }


def _answer(output: RadioModelOutput, to_groups: Callable[[Tensor], list[Tensor]]) -> StudentAnswer:
    adaptors = cast(dict[str, RadioAdaptorOutput], output.adaptors)
    return StudentAnswer(
        to_groups(cast(Tensor, output.features)),
        {
            name: HeadAnswer(answer.summary, to_groups(cast(Tensor, answer.features)))
            for name, answer in adaptors.items()
        },
    )


def _split(tokens: Tensor, grids: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Cut `(total_tokens, dim)` into maps; an adaptor that upsamples has a whole number of tokens along each patch."""
    num_patches = sum(count * rows * cols for count, rows, cols in grids)
    factor = round((len(tokens) / num_patches) ** 0.5)
    parts = tokens.split([count * rows * cols * factor**2 for count, rows, cols in grids])
    return [
        part.unflatten(0, (count, rows * factor, cols * factor)).movedim(-1, 1)
        for part, (count, rows, cols) in zip(parts, grids, strict=True)
    ]
