"""RADSeg: four steps that make maps of words cleaner, without training.

The patches of RADIO's last block attend to each other twice (SCRA), the network sees overlapping windows of the image,
each patch of the whole image becomes a mean of the patches that resemble it (SCGA), and words that no patch is sure of
are left out (prompt denoising). Written from the paper; numbers and details that it leaves open are those of the
authors' code (MIT), https://github.com/RADSeg-OVSS/RADSeg at 05ec86f.

References:
    RADSeg, https://arxiv.org/abs/2511.19704
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks_radio import round_to_step, window_starts
from .layers_radio import RadioAttention, is_exporting
from .outputs_radio import NetworkOutput


SCALING = 10.0
"""Factor on the cosines of SCRA and of SCGA: `scra_scaling` and `scga_scaling` of the authors' code."""
SLIDING = (336, 224)
"""Side of the windows and step between them in pixels: `slide_crop` and `slide_stride` of the authors' code."""
DENOISING = 0.5
"""Least probability of a word at its best patch: `prompt_denoising_thresh` of the authors' code."""
PROBABILITY_SCALE = 100.0
"""Factor on the cosines of patches and words before their softmax: `compute_cos_sim` of the authors' code."""
LEFT_OUT = -1e4
"""Our choice: logits of a word that is left out. Unlike infinity they can be interpolated, also in float16."""
MAX_SIMILARITIES = 2**24
"""Our choice: similarities of patches that are in memory at once, 64 MiB of float32 and a few copies."""
WINDOWS_AT_ONCE = 16
"""Our choice: windows in one pass."""

Scra = float | Literal["auto"] | None


def choose_scra(network: Any, scra: Scra) -> float | None:
    """Return the factor of SCRA; "auto" is `SCALING` where the last block has RADIO's own attention, otherwise `None`.

    Raises:
        ValueError: If it is no positive number, or the network has no such block.
    """
    config = network.config
    is_plain = not config.is_foreign and not config.num_mergings and config.navit is None
    has_attention = is_plain and isinstance(network.model.blocks[-1].attn, RadioAttention)
    if scra == "auto":
        return SCALING if has_attention else None
    check_scaling("scra", scra)
    if scra is not None and not has_attention:
        raise ValueError(
            f"`scra` must be 'auto' or None for a network whose last block is not RADIO's own, got {scra}: E-RADIO, "
            "RADIO1D, NaViT, networks of libraries, and blocks with another attention."
        )
    return scra  # pyrefly: ignore[bad-return]


def check_scaling(name: str, factor: Any) -> None:
    """Raise a `ValueError` unless a factor is a positive number or `None`."""
    is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
    if factor is not None and not (is_number and 0 < factor < float("inf")):
        raise ValueError(f"`{name}` must be a positive number or None, got {factor!r}. The paper's is {SCALING}.")


def check_sliding(sliding: Any) -> None:
    """Raise a `ValueError` unless `sliding` is `None` or a window and a step, both positive, that leave no gaps."""
    is_pair = isinstance(sliding, (tuple, list)) and len(sliding) == 2 and all(type(side) is int for side in sliding)
    if sliding is not None and not (is_pair and 0 < sliding[1] <= sliding[0]):
        raise ValueError(
            f"`sliding` must be None, or the side of a window and a step of at most that, in pixels, got {sliding!r}. "
            f"The paper's are {SLIDING}."
        )


def check_denoising(denoising: Any) -> None:
    """Raise a `ValueError` unless `denoising` is `None` or a probability."""
    is_number = isinstance(denoising, (int, float)) and not isinstance(denoising, bool)
    if denoising is not None and not (is_number and 0 <= denoising <= 1):
        raise ValueError(f"`denoising` must be a probability in [0, 1] or None, got {denoising!r}.")


def gather_alike(vectors: Tensor, values: Tensor, scaling: float, least: Tensor | float) -> Tensor:
    """Return for each place the mean of all values, weighted by how much their places resemble it.

    Weights are a softmax over `scaling` times the cosines; cosines below `least` weigh nothing, except where all are.
    Rows of the matrix of cosines are computed some at a time, so that it is never in memory as a whole. An exported
    graph computes all at once, as its attention does: how many there may be at a time depends on the size of the image,
    which the graph leaves open.

    Args:
        vectors: Unit vectors, `(..., places, dim)`.
        values: Averaged vectors, `(..., places, value_dim)`.
        scaling: Factor on the cosines.
        least: One number, or `(..., 1, 1)`.

    Returns:
        `(..., places, value_dim)`.
    """
    parts = [vectors] if is_exporting() else vectors.split(max(1, MAX_SIMILARITIES // vectors[..., 0].numel()), dim=-2)
    gathered = []
    for some in parts:
        cosines = some @ vectors.mT
        limit = torch.minimum(cosines.amax(dim=-1, keepdim=True), torch.as_tensor(least).to(cosines))
        weights = (scaling * cosines).masked_fill(cosines < limit, -torch.inf).softmax(dim=-1)
        gathered.append(weights @ values.to(weights))
    return torch.cat(gathered, dim=-2).to(values.dtype)


def attend_recursively(attention: RadioAttention, hidden_states: Tensor, scaling: float) -> Tensor:
    """Self-correlating recursive attention (SCRA), `(batch, length, hidden)` to the same.

    The output of the usual attention, cut into heads, decides who attends to whom: tokens weigh by `scaling` times the
    cosine of their outputs, and not at all where it is negative. They gather the usual values, and the usual projection
    follows.

    Args:
        attention: Attention layer of the last block.
        hidden_states: Its normed input.
        scaling: Factor on the cosines.
    """
    outputs = attention(hidden_states).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    values = attention.project(hidden_states)[:, :, 2].transpose(1, 2)
    mixed = gather_alike(_unit(outputs), values, scaling, 0.0)
    return attention.proj(mixed.transpose(1, 2).flatten(2))


def encode_recursively(
    network: Any, pixel_values: Tensor, window_size: Any, scaling: float | None
) -> tuple[NetworkOutput, Tensor]:
    """Run a network; return its output and the final tokens with SCRA, its own without a factor.

    Args:
        network: The `RadioNetwork`.
        pixel_values: As in `RadioModel.forward`.
        window_size: As in `RadioModel.forward`.
        scaling: Factor on the cosines, as `choose_scra` returns it.
    """
    keep = [] if scaling is None else [max(network.config.num_hidden_layers - 2, 0)]
    passed = network(pixel_values, window_size=window_size, keep=keep)
    return passed, passed.tokens if scaling is None else finish_recursively(network, passed, scaling)


def finish_recursively(network: Any, passed: NetworkOutput, scaling: float) -> Tensor:
    """Return the final tokens with SCRA in the last block, `(batch, length, hidden)`.

    The last block is run again from what it read. No part of the model changes meanwhile, so other threads may use it.

    Args:
        network: The `RadioNetwork`.
        passed: Its output, in which the block before the last is kept.
        scaling: Factor on the cosines.
    """
    trunk = network.model
    block = trunk.blocks[-1]
    states = passed.kept.get(len(trunk.blocks) - 2, passed.embedded).to(passed.tokens.device)
    states = states + block.ls1(attend_recursively(block.attn, block.norm1(states), scaling))
    return trunk.norm(states + block.ls2(block.mlp(block.norm2(states))))


def aggregate(patches: Tensor, scaling: float) -> Tensor:
    """Self-correlating global aggregation (SCGA): each patch becomes a mean of the patches that resemble it.

    Patches whose cosine is below the mean of all cosines of the image weigh nothing. That mean is the squared length of
    the mean unit vector, so it needs no matrix. The authors' code takes one mean over a batch; here each image has its
    own, so that results do not depend on the batch.

    Args:
        patches: Backbone features, before any head, `(batch, patches, hidden)`.
        scaling: Factor on the cosines.
    """
    vectors = _unit(patches)
    mean = vectors.mean(dim=1, keepdim=True).square().sum(dim=2, keepdim=True)
    return gather_alike(vectors, patches, scaling, mean)


def slide(pixel_values: Tensor, sliding: tuple[int, int], step: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean of the features of overlapping windows as one map, `(batch, hidden, rows, cols)`.

    The last windows end at the edges of the image; the authors' code enlarges the image to a multiple of 224 instead.
    An image that is smaller than a window is one.

    Args:
        pixel_values: `(batch, channels, height, width)`.
        sliding: Side of a window and step to the next in pixels, rounded to multiples of `step`.
        step: Pixels of which the sides of all images are multiples.
        encode: Returns the map of images of one size.
    """
    side, stride = (round_to_step(pixels, step) for pixels in sliding)
    height, width = pixel_values.shape[-2:]
    high, wide = min(side, height), min(side, width)
    places = [(top, left) for top in window_starts(height, high, stride) for left in window_starts(width, wide, stride)]
    if len(places) == 1:
        return encode(pixel_values)
    batch_size, maps = len(pixel_values), []
    at_once = max(1, WINDOWS_AT_ONCE // batch_size)
    for start in range(0, len(places), at_once):
        some = places[start : start + at_once]
        windows = [pixel_values[..., top : top + high, left : left + wide] for top, left in some]
        maps += encode(torch.cat(windows)).split(batch_size)
    cell, (hidden, rows, cols) = high // maps[0].shape[2], maps[0].shape[1:]
    total = maps[0].new_zeros(batch_size, hidden, height // cell, width // cell)
    count = maps[0].new_zeros(total.shape[2:])
    for (top, left), each in zip(places, maps, strict=True):
        row, col = top // cell, left // cell
        total[..., row : row + rows, col : col + cols] += each
        count[row : row + rows, col : col + cols] += 1
    return total / count


def to_probabilities(cosines: Tensor) -> Tensor:
    """Return the softmax over words, `(batch, words, rows, cols)`, by which patches are sure of a word."""
    return (PROBABILITY_SCALE * cosines).softmax(dim=1)


def find_unlikely(cosines: Tensor, least: float) -> Tensor:
    """Return which words no patch of an image is sure of, `(batch, words, 1, 1)`: prompt denoising leaves these out.

    A word stays if its probability reaches `least` at some patch; if no word's does, all stay. The authors' code asks
    the pixels of the enlarged map, ours the patches.

    Args:
        cosines: Cosines of patches and words, `(batch, words, rows, cols)`.
        least: Probability.
    """
    is_out = to_probabilities(cosines).amax(dim=(2, 3), keepdim=True) < least
    return is_out & ~is_out.all(dim=1, keepdim=True)


def _unit(vectors: Tensor) -> Tensor:
    """Return unit vectors, in float32 at least: cosines near the threshold decide who weighs at all."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
