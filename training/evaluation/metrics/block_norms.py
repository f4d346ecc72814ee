"""How long patch tokens are after every block, which shows outlier patches as they grow."""

from __future__ import annotations

import torch
from torch import Tensor

from modeling_radio import RadioModel


@torch.no_grad()
def block_norms(model: RadioModel, pixel_values: Tensor) -> list[Tensor]:
    """Return the Euclidean norm over channels of each patch token after each block, `(num_tokens,)` of all images.

    Attention is the model's own, with windows where its configuration has them. Of RADIO1D the blocks are those of its
    encoder, with fewer tokens behind each merging.

    Args:
        model: In eval mode.
        pixel_values: `(batch, 3, height, width)` in [0, 1].

    References:
        Outlier patches: "Vision Transformers Need Registers", https://arxiv.org/abs/2309.16588
    """
    output = model(pixel_values, adaptor_names=[], output_hidden_states=True, return_dict=True)
    first_patch = model.config.num_prefix_tokens
    return [tokens[:, first_patch:].float().norm(dim=2).flatten() for tokens in output.hidden_states[1:]]
