"""Shape of a vision transformer, where it runs, and the multiplications of a pass."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from modeling_radio import RadioConfig
from modeling_radio.layout_radio import Segments


class Shape(NamedTuple):
    """What networks that are compared have in common.

    Attributes:
        width: Channels of a token.
        depth: Blocks.
        num_heads: Heads of the attention.
        mlp_width: Channels between the two layers of an MLP.
        patch_size: Side of a patch in pixels.
        num_prefix: Class tokens and registers.
        largest_grid: Patches along a side of the table of positions.
        windowed: 0-based blocks that have windows where one is asked for.
    """

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    patch_size: int
    num_prefix: int
    largest_grid: int
    windowed: tuple[int, ...]

    @classmethod
    def of(cls, config: RadioConfig) -> "Shape":
        """Return the shape of a configuration."""
        depth = config.num_hidden_layers
        return cls(
            width=config.hidden_size,
            depth=depth,
            num_heads=config.num_attention_heads,
            mlp_width=config.intermediate_size,
            patch_size=config.patch_size,
            num_prefix=config.num_prefix_tokens,
            largest_grid=config.position_grid_size,
            windowed=tuple(index for index in range(depth) if not config.is_global_block(index)),
        )


class Place(NamedTuple):
    """Where a network runs, and in what type."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


class BlockWork(NamedTuple):
    """What one block multiplies for one image.

    Attributes:
        tokens: That go through its MLP.
        segments: That attend, as runs of equal ones; also these tokens go through the layers around attention.
    """

    tokens: int
    segments: Segments


Work = Sequence[BlockWork]


def global_work(shape: Shape, tokens: int) -> Work:
    """Return the work where all tokens attend to each other in all blocks."""
    return [BlockWork(tokens, ((1, tokens),))] * shape.depth


def flops_of(shape: Shape, work: Work, num_patches: int) -> int:
    """Return the floating-point operations of the matrix products for one image, two for each multiplication.

    Args:
        shape: Of the network.
        work: Of its blocks.
        num_patches: That are projected.
    """
    flops = 2 * num_patches * 3 * shape.patch_size**2 * shape.width
    for tokens, segments in work:
        attending = sum(count * length for count, length in segments)
        pairs = sum(count * length**2 for count, length in segments)
        flops += 2 * attending * 4 * shape.width**2 + 2 * tokens * 2 * shape.width * shape.mlp_width
        flops += 2 * pairs * 2 * shape.width
    return flops


def weight_bytes(shape: Shape, dtype: torch.dtype) -> int:
    """Return the bytes of the weights that every pass reads: those of the blocks' linear layers."""
    values = shape.depth * (4 * shape.width**2 + 2 * shape.width * shape.mlp_width)
    return values * torch.empty((), dtype=dtype).element_size()
