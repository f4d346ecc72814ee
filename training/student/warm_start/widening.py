"""Widens the blocks of a plain RADIO checkpoint to those that a RADIO1D student has behind a merging.

Net2Wider: a wide layer repeats the narrow one along its wider sides, and what it reads twice counts half, so that on
tokens that are the narrow ones twice it answers the narrow answer twice. A little noise parts the copies.

RADIO1D's account halves output projections and divides the norms by the root of two instead, which its queries and keys
feel twice over; halving every reading keeps the function, so we do that (our choice).

References:
    Net2Net, https://arxiv.org/abs/1511.05641; RADIO1D, https://arxiv.org/abs/2607.03624
"""

import re

import torch
from torch import Tensor

from foundation.seeds import make_generator
from modeling_radio import RadioConfig
from modeling_radio.modeling_radio import BLOCKS
from training.recipe import RecipeError


NOISE = 0.01
"""Deviation of the noise, in deviations of the weight. Our choice: large beside rounding, small beside the weight."""
SEED = 0
"""Of the noise: the same start on all ranks, and for every seed of a run, which decides what is new beside it."""

_NEW = ("decoder.", "downscale_blocks.", "prefix_proj_blocks.")
_NEW_KEYS = tuple(f"{BLOCKS.removesuffix('blocks')}{name}" for name in _NEW)
_PREFIX = re.compile(rf"{re.escape(BLOCKS.removesuffix('blocks'))}prefix_proj_blocks\.\d+\.weight")


def is_new(key: str) -> bool:
    """Whether a weight has no counterpart in a plain network."""
    return key.startswith(_NEW_KEYS)


def widen(key: str, tensor: Tensor, shape: torch.Size, noise: float = NOISE) -> Tensor:
    """Return a weight of a narrow block at the shape of a wide one; one of the same shape as it is.

    Args:
        key: Its name, which tells projections to queries, keys and values apart from others.
        tensor: The narrow weight: a matrix `(output, input)`, or a vector.
        shape: Of the wide weight, each side a multiple of the narrow one.
        noise: See `NOISE`.
    """
    if tensor.shape == shape:
        return tensor
    parts = 3 if ".attn.qkv." in key else 1  # each with heads of its own, of which there are more
    factors = [wide // narrow for wide, narrow in zip(shape, tensor.shape, strict=True)]
    wide = tensor.unflatten(0, (parts, -1)).repeat(1, *factors).flatten(0, 1)
    if tensor.ndim == 2:
        wide = wide / factors[1]
    deviation = noise * wide.std() if wide.numel() > 1 else 0.0
    return wide + deviation * torch.randn(wide.shape, generator=make_generator(SEED, "widening", key))


def start_prefix(key: str, tensor: Tensor) -> None:
    """Let a projection of prefix tokens repeat them, so that they too are the narrow ones twice; others stay."""
    if _PREFIX.fullmatch(key):
        tensor.copy_(torch.eye(tensor.shape[1]).repeat(2, 1))


def check_widening(config: RadioConfig, source: RadioConfig, name: str) -> None:
    """Refuse a start whose mergings are others than the student's, and widths that no repetition gives.

    Args:
        config: The student's configuration.
        source: That of the checkpoint.
        name: Of the checkpoint.

    Raises:
        RecipeError: If the checkpoint cannot be widened, or needs no widening and has another decoder.
    """
    if source.num_mergings:
        fields = ("downscale_levels", "qk_norm", "decoder_depth", "splitting_blocks", "filler_side")
        others = [field for field in fields if getattr(config, field) != getattr(source, field)]
        if others:
            raise RecipeError(
                f"`student.init_from` {name!r} is a RADIO1D with another {', '.join(others)}: change `student.config` "
                "to match it, or start from a plain network."
            )
    elif config.num_mergings:
        repeated = [config.intermediate_size << merges for merges in range(config.num_mergings + 1)]
        own = [config.merged_intermediate_size(merges) for merges in range(config.num_mergings + 1)]
        if config.qk_norm or own != repeated:
            raise RecipeError(
                f"`student.init_from` {name!r} can be widened only to `qk_norm` false and MLPs of {repeated}, got "
                f"{config.qk_norm} and {own}."
            )
