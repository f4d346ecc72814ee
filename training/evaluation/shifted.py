"""Dense features on a grid finer than the patch, interleaved from passes over shifted images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from training.evaluation.models.base import FeatureModel


BATCH = 32
"""Images for each pass, our choice."""


@torch.no_grad()
def shifted_maps(
    model: FeatureModel, images: Tensor, *, size_px: int, shifts: int, adaptors: Sequence[str] = ()
) -> Mapping[str, Tensor]:
    """Return dense features on a grid `shifts` times as fine as that of one pass.

    The model runs on windows of `size_px` at `shifts` x `shifts` offsets within a patch, and their maps are
    interleaved: each position has the features of the patch that is centered on it. Objects keep the size of the
    training, unlike in a larger image: a student of the recipe `demo` (trained at 96 and 128 px) comes closer to its
    teachers this way than at 512 px, on the same grid (docs/log.md).

    Args:
        model: Model in eval mode.
        images: uint8 RGB, `(num_images, 3, size_px + patch, size_px + patch)`: the features describe the middle
            `size_px`, and shifted windows reach half a patch beyond.
        size_px: Side of the windows, a multiple of the patch.
        shifts: Positions for each patch and direction; divides the patch.
        adaptors: Adaptors whose features are returned too.

    Returns:
        By name, the model's own under "", `(num_images, dim, shifts * rows, shifts * cols)`, on the CPU.

    Raises:
        ValueError: If the images or `shifts` do not fit the patch.
    """
    patch = model.patch_size
    if shifts < 1 or patch % shifts:
        raise ValueError(f"`shifts` must divide the {patch} pixels of a patch, got {shifts}. Take another number.")
    if tuple(images.shape[-2:]) != (size_px + patch, size_px + patch) or size_px % patch:
        raise ValueError(
            f"`images` must have sides of `size_px` and a patch, {size_px + patch} pixels with `size_px` a multiple of "
            f"{patch}, got {tuple(images.shape[-2:])}. Resize them."
        )
    # Offset of the window that centers a patch on position number `shift` within a patch.
    starts = [(2 * shift + 1) * patch // (2 * shifts) for shift in range(shifts)]
    rows: list[dict[str, Tensor]] = []
    for top in starts:
        columns = [_maps(model, images[..., top : top + size_px, left : left + size_px], adaptors) for left in starts]
        rows.append({name: _interleaved([each[name] for each in columns], dim=3) for name in columns[0]})
    return {name: _interleaved([each[name] for each in rows], dim=2) for name in rows[0]}


def window_of(images: Tensor, size_px: int, patch_size: int) -> Tensor:
    """Return the part of images that `shifted_maps` describes, for images of another size.

    Args:
        images: Squares of another size with the same content, `(num_images, 3, side, side)`.
        size_px: As for `shifted_maps`.
        patch_size: Patch size of the model.
    """
    return center_crop(images, [round(images.shape[-1] * size_px / (size_px + patch_size))] * 2)


def _maps(model: FeatureModel, images: Tensor, adaptors: Sequence[str]) -> dict[str, Tensor]:
    """Return the dense features of square images, by name."""
    batches = []
    for some in images.split(BATCH):
        pixels = torch.stack([model.preprocess(image, image.shape[-1]) for image in some]).to(model.device)
        encoding = model.encode(pixels, adaptors)
        batches.append({"": encoding.features, **{name: encoding.adaptors[name].features for name in adaptors}})
    return {name: torch.cat([batch[name].float().cpu() for batch in batches]) for name in batches[0]}


def _interleaved(maps: Sequence[Tensor], dim: int) -> Tensor:
    """Interleave maps along a dimension: their first positions, then their second ones."""
    return torch.stack(list(maps), dim=dim + 1).flatten(dim, dim + 1)
