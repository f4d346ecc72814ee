"""What happens inside a model: features over its depth, and RADIO1D's two outputs over the number of global tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from modeling_radio.resolution_radio import Resolution
from training.evaluation.report.gallery.photographs import Gallery
from training.evaluation.report.page import Section
from training.evaluation.tasks.tokens import token_counts
from training.pictures.features import fit_pca_basis, pca_colors


NUM_BLOCKS = 4
"""Shown of the depth, evenly spread to the last; our choice, the four that DPT's decoder reads."""


def depth_section(gallery: Gallery) -> Section:
    """Show the backbone after blocks at even depths, each in a basis of its own."""
    depth = gallery.model.model.config.num_hidden_layers
    shown = min(NUM_BLOCKS, depth)
    blocks = [depth * (number + 1) // shown - 1 for number in range(shown)]
    columns = {
        f"after block {block + 1} of {depth}": pca_colors(maps, fit_pca_basis(maps))
        for block, maps in zip(blocks, _maps_after(gallery, blocks), strict=True)
    }
    text = (
        "Patches after some of the blocks. Each has three principal components of its own: colors compare places, not "
        "columns."
    )
    return Section("Over depth", text, gallery.rows(columns))


def token_section(gallery: Gallery) -> Section:
    """Show RADIO1D's global tokens as the map that they are made from, and the decoder's answer to fewer and fewer."""
    model, size = gallery.model, gallery.model.size_px
    cells = size // model.patch_size
    available = model.model.config.count_global_tokens(Resolution(cells, cells))
    (neck,) = _maps_after(gallery, [model.model.config.num_hidden_layers - 1])
    columns = {f"encoder, all {available} tokens": pca_colors(neck, fit_pca_basis(neck))}
    whole = gallery.maps_at(size)
    basis = fit_pca_basis(whole)
    for count in reversed(token_counts(available)):
        maps = gallery.maps_at(size, model.with_tokens(count))
        cosine = torch.cosine_similarity(maps, whole, dim=1).mean()
        plural = "token" if count == 1 else "tokens"
        columns[f"decoder, {count} {plural}, mean cosine {cosine:.2f}"] = pca_colors(maps, basis)
    text = (
        "The encoder's patches after the last block, in a basis of their own; then what the decoder makes of the first "
        "of them, in the basis of all."
    )
    return Section("Global tokens", text, gallery.rows(columns))


@torch.no_grad()
def _maps_after(gallery: Gallery, blocks: list[int]) -> list[Tensor]:
    """Return maps after 0-based blocks, `(num_photographs, dim, rows, cols)`; of RADIO1D its encoder's."""
    model = gallery.model.model
    found = [
        model.forward_intermediates(pixels, blocks, intermediates_only=True)
        for pixels in gallery.pixels_at(gallery.model.size_px)
    ]
    return [torch.cat(maps).float().cpu() for maps in zip(*found, strict=True)]
