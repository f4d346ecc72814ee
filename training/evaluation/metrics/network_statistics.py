"""What goes on inside a network, block by block: sizes of weights, attention logits, activations, tokens; entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modeling_radio import RadioModel


@dataclass(frozen=True)
class BlockStatistics:
    """Of one block, on some images.

    Attributes:
        weight: Root mean square of the numbers in its matrices.
        entropy: Mean entropy of a token's attention, as a share of that of equal attention to all, in [0, 1].
        logit: Largest size of an attention logit. Training in low precision diverges where it grows beyond about 50
            (ViT-22B, https://arxiv.org/abs/2302.05442, section 2).
        activation: Largest size of a number that the block hands on.
    """

    weight: float
    entropy: float
    logit: float
    activation: float


def block_statistics(model: RadioModel, pixels: Tensor) -> list[BlockStatistics]:
    """Return the statistics of every block of a ViT on images `(batch, 3, height, width)`, with global attention.

    Raises:
        ValueError: If the network has no transformer's blocks.
    """
    if model.config.eradio is not None:
        raise ValueError("`model_statistics` needs a network of transformer blocks, got an E-RADIO. Leave it out.")
    blocks = list(model.blocks)
    with _recorded(blocks) as found:
        model(pixels, window_size="global", adaptor_names=[])
    weights = [
        _root_mean_square([parameter for parameter in block.parameters() if parameter.ndim == 2]) for block in blocks
    ]
    return [BlockStatistics(weight, **found[index]) for index, weight in enumerate(weights)]


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


def _root_mean_square(matrices: list[Tensor]) -> float:
    total = sum(matrix.double().square().sum().item() for matrix in matrices)
    return math.sqrt(total / sum(matrix.numel() for matrix in matrices))


@contextmanager
def _recorded(blocks: list[nn.Module]) -> Iterator[list[dict[str, float]]]:
    """Let passes within write what they find, by block."""
    found: list[dict[str, float]] = [{} for _ in blocks]
    handles = []
    for block, own in zip(blocks, found, strict=True):

        def before(attention: Any, arguments: tuple[Any, ...], own: dict[str, float] = own) -> None:
            own["entropy"], own["logit"] = attention_statistics(attention, *arguments[:2])

        def after(_: Any, __: Any, output: Any, own: dict[str, float] = own) -> None:
            own["activation"] = output[0].abs().amax().item()

        attention: Any = block.attn
        handles += [attention.register_forward_pre_hook(before), block.register_forward_hook(after)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def attention_statistics(attention: Any, hidden_states: Tensor, segments: Any) -> tuple[float, float]:
    """Return entropy and largest logit of an attention layer, head by head so that no large matrix is kept.

    Args:
        attention: A `RadioAttention`.
        hidden_states: What it reads, `(batch, length, hidden)`.
        segments: Runs of segments, of which there must be one with one segment: global attention.
    """
    ((count, length),) = segments
    assert count == 1, "global attention"
    query, key, _ = attention.project(hidden_states).unbind(2)  # (batch, length, heads, head_dim)
    entropies, largest = [], 0.0
    for head in range(query.shape[2]):
        logits = (query[:, :, head] @ key[:, :, head].transpose(1, 2)).float() * attention.scaling
        logs = logits.log_softmax(dim=-1)
        entropies.append(-(logs.exp() * logs).sum(dim=-1).mean().item())
        largest = max(largest, logits.abs().amax().item())
    return sum(entropies) / len(entropies) / math.log(length), largest
