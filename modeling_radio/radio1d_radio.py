"""RADIO1D: an encoder that merges tokens, as many of them as a call asks for, and a decoder back to one token a patch.

Only networks with `downscale_levels` import this file. Modules carry NVIDIA's checkpoint names.

References:
    https://arxiv.org/abs/2607.03624
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from .checks_radio import Resolution, integer
from .configuration_radio import RadioConfig
from .inputs_radio import Call, TokensWanted
from .layers_radio import (
    RadioAttention,
    RadioBlock,
    RadioLearnedTokens,
    RadioMLP,
    RadioVisionTransformer,
    is_exporting,
    resize_position_table,
)
from .modeling_radio import RadioNetwork
from .outputs_radio import GlobalTokens, NetworkOutput, to_map


# Epsilon of the norms where tokens are merged and split: torch's default, unlike that of the blocks.
MERGE_NORM_EPS = 1e-5

logger = logging.get_logger(__name__)


class TokenCounts(NamedTuple):
    """Number of global tokens of images.

    Attributes:
        longest: The most that any has.
        by_image: Those of each, `None` where all have as many.
    """

    longest: int
    by_image: list[int] | None = None

    def mask(self, batch_size: int, length: int, device: torch.device) -> Tensor:
        """Return which of `length` positions hold a token, `(batch, length)`."""
        counts = [self.longest] if self.by_image is None else self.by_image
        taken = torch.arange(length, device=device) < torch.tensor(counts, device=device)[:, None]
        return taken.expand(batch_size, -1)


class TokenPlan(NamedTuple):
    """Order of the tokens of a batch in the trunk of RADIO1D.

    Attributes:
        grid: Rows and columns of patches of each image.
        counts: Numbers of global tokens that go through the decoder; `None` runs the encoder alone, over all tokens.
        decode: Whether the decoder runs.
    """

    grid: Resolution
    counts: TokenCounts | None = None
    decode: bool = True


def count_tokens(config: RadioConfig, wanted: TokensWanted, grid: Resolution, num_images: int) -> TokenCounts:
    """Return how many global tokens each image gets.

    Args:
        config: Says what "all" are, and how many where the call does not say.
        wanted: Numbers that the call asks for; more than there are means all, which is said once.
        grid: Rows and columns of patches of each image.
        num_images: Images of the batch; of clips all groups of frames.

    Raises:
        ValueError: If that is no number of at least 0, or not one for each image.
    """
    available = config.count_global_tokens(grid)
    wanted = config.num_tokens if wanted is None else wanted
    if wanted is None:
        return TokenCounts(available)
    if isinstance(wanted, Tensor) and is_exporting():
        count = wanted.item()  # decided when the program runs, which takes it as it is
        torch._check(count >= 0)
        torch._check(count <= available)
        return TokenCounts(count)  # pyrefly: ignore[bad-argument-type]
    if isinstance(wanted, Tensor):
        wanted = wanted.tolist()
    counts = [wanted] if isinstance(wanted, int) else wanted
    if not isinstance(counts, Sequence) or not all(map(integer(0).holds, counts)):
        raise ValueError(f"`num_tokens` must be None, or integers of at least 0, got {wanted!r}.")
    if len(counts) != 1 and len(counts) != num_images:
        raise ValueError(
            f"`num_tokens` must have one number for each of the {num_images} images, got {len(counts)}. Of clips each "
            "group of frames is one."
        )
    if max(counts) > available:
        logger.warning_once("`num_tokens` is more than an image has, so it gets all that there are. This is said once.")
    counts = [min(count, available) for count in counts]
    return TokenCounts(max(counts), counts if len(set(counts)) > 1 else None)


class RadioNormedAttention(RadioAttention):
    """Attention with a layer norm on each head's queries and keys."""

    def __init__(self, config: RadioConfig, num_heads: int, qkv_bias: bool, hidden_size: int | None = None) -> None:
        super().__init__(config, num_heads, qkv_bias, hidden_size)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)

    def project(self, hidden_states: Tensor) -> Tensor:
        query, key, value = super().project(hidden_states).unbind(2)
        return torch.stack([self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype), value], dim=2)


class RadioPatchMerging(nn.Module):
    """Makes one token of twice the width of each 2 x 2.

    Shapes of `forward`: patches `(batch, rows * cols, hidden)` and their grid to `(batch, ceil(rows / 2) *
    ceil(cols / 2), 2 * hidden)`; odd rows and columns are filled up with zeros at the right and at the bottom.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * hidden_size, eps=MERGE_NORM_EPS)
        self.reduction = nn.Linear(4 * hidden_size, 2 * hidden_size, bias=False)

    def forward(self, patches: Tensor, grid: Resolution) -> Tensor:
        rows, cols = grid
        maps = F.pad(patches.unflatten(1, (rows, cols)), (0, 0, 0, cols % 2, 0, rows % 2))
        squares = maps.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        # (batch, rows, 2, cols, 2, hidden) -> (batch, rows * cols, 2 columns * 2 rows * hidden)
        squares = squares.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
        # Under autocast tokens stay in their type through all blocks.
        return self.reduction(self.norm(squares)).to(patches.dtype)


class RadioPatchExpanding(nn.Module):
    """Makes 2 x 2 tokens of half the width of each one.

    Shapes of `forward`: patches `(batch, rows * cols, hidden)` and their grid to `(batch, 2 * rows * 2 * cols,
    hidden / 2)`.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.expansion = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size // 2, eps=MERGE_NORM_EPS)

    def forward(self, patches: Tensor, grid: Resolution) -> Tensor:
        squares = self.expansion(patches).unflatten(2, (2, 2, -1)).unflatten(1, tuple(grid))
        # (batch, rows, cols, 2, 2, hidden / 2) -> (batch, rows * 2 * cols * 2, hidden / 2)
        return self.norm(squares.transpose(2, 3).flatten(1, 4)).to(patches.dtype)


class Radio1dDecoder(RadioLearnedTokens):
    """Makes one token a patch of some global tokens.

    The global tokens take the first positions of the coarse grid, learned fillers the others; prefix tokens of its own
    stand in front. Blocks have neither bias of the queries, keys and values nor LayerScale.

    Shapes of `forward`: global tokens `(batch, longest, global_hidden_size)`, how many of them count, and the patches
    of the image, to `(batch, prefix + rows * cols, hidden_size)`.
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.config = config
        width = config.global_hidden_size
        self.filler_tokens = nn.Parameter(torch.empty(config.filler_side**2, width))
        self.prefix_tokens = nn.Parameter(torch.empty(config.num_prefix_tokens, width))
        self.levels = config.splitting_blocks
        splits = [sum(level <= block for level in self.levels) for block in range(config.decoder_depth)]
        self.blocks = nn.ModuleList(self._build_block(count) for count in splits)
        self.upscale_blocks = nn.ModuleList(RadioPatchExpanding(width >> split) for split in range(len(self.levels)))
        self.prefix_proj_blocks = nn.ModuleList(
            nn.Linear(width >> split, width >> (split + 1), bias=False) for split in range(len(self.levels))
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def _build_block(self, splits: int) -> RadioBlock:
        config = self.config
        width, heads = config.global_hidden_size >> splits, config.decoder_heads(splits)
        attention = RadioAttention(config, heads, qkv_bias=False, hidden_size=width)
        mlp = RadioMLP(config, config.merged_intermediate_size(config.num_mergings - splits), width)
        return RadioBlock(config, attention, mlp, use_layer_scale=False, hidden_size=width)

    def forward(self, tokens: Tensor, counts: TokenCounts, grid: Resolution) -> Tensor:
        config = self.config
        current = config.block_grid(grid, config.num_hidden_layers - 1)
        prefix = self.prefix_tokens.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        sequence = torch.cat([prefix, self._fill(tokens, counts, current)], dim=1)
        for index, block in enumerate(self.blocks):
            if index in self.levels:
                split = self.levels.index(index)
                prefix, patches = sequence.tensor_split([config.num_prefix_tokens], dim=1)
                prefix = self.prefix_proj_blocks[split](prefix).to(patches.dtype)
                sequence = torch.cat([prefix, self.upscale_blocks[split](patches, current)], dim=1)
                current = Resolution(2 * current.height, 2 * current.width)
            sequence = block(sequence)
        prefix, patches = self.norm(sequence).tensor_split([config.num_prefix_tokens], dim=1)
        rows, cols = grid
        patches = patches.unflatten(1, tuple(current))[:, :rows, :cols].flatten(1, 2)
        return torch.cat([prefix, patches], dim=1)

    def _fill(self, tokens: Tensor, counts: TokenCounts, grid: Resolution) -> Tensor:
        """Put the fillers of a grid behind each image's tokens, `(batch, rows * cols, global_hidden_size)`."""
        side = self.config.filler_side
        fillers = self.filler_tokens[None]
        if tuple(grid) != (side, side):
            fillers = resize_position_table(fillers.float().unflatten(1, (side, side)), *grid, align_corners=False)
        fillers = fillers.to(tokens.dtype)
        if counts.by_image is None:
            return torch.cat([tokens, fillers[:, counts.longest :].expand(tokens.shape[0], -1, -1)], dim=1)
        length = fillers.shape[1]
        padded = F.pad(tokens, (0, 0, 0, length - counts.longest))
        return torch.where(counts.mask(tokens.shape[0], length, tokens.device)[:, :, None], padded, fillers)


class Radio1dTransformer(RadioVisionTransformer):
    """Patch generator, encoder blocks with mergings between them, and the decoder."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        self.config = config
        self.levels = config.downscale_levels or []
        widths = [config.hidden_size << merge for merge in range(len(self.levels))]
        self.downscale_blocks = nn.ModuleList(RadioPatchMerging(width) for width in widths)
        self.prefix_proj_blocks = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for width in widths)
        self.decoder = Radio1dDecoder(config)

    def build_block(self, config: RadioConfig, index: int) -> RadioBlock:
        merges, width = config.count_merges(index), config.block_hidden_size(index)
        attention = RadioNormedAttention if config.qk_norm else RadioAttention
        return RadioBlock(
            config,
            attention(config, config.num_attention_heads << merges, config.qkv_bias, width),
            RadioMLP(config, config.merged_intermediate_size(merges), width),
            hidden_size=width,
        )

    def encode(
        self,
        hidden_states: Tensor,
        grid: Resolution,
        counts: TokenCounts | None,
        keep: Collection[int] = (),
        draws: Tensor | None = None,
        with_attentions: bool = False,
    ) -> tuple[Tensor, dict[int, Tensor], list[list[Tensor]]]:
        """Run the encoder; arguments and results are those of `RadioVisionTransformer.forward`, but for two.

        Args:
            hidden_states: As there.
            grid: Rows and columns of patches.
            counts: Numbers of wanted global tokens, by which `progressive_reduction` cuts the sequence; `None` cuts
                nothing. In a batch the image with most of them decides.
            keep: As there.
            draws: As there.
            with_attentions: As there.
        """
        num_prefix, kept, attentions = self.config.num_prefix_tokens, {}, [[] for _ in self.blocks]
        limit = counts.longest if self.config.progressive_reduction and counts is not None else None
        for index, block in enumerate(self.blocks):
            if index in self.levels:
                merge = self.levels.index(index)
                hidden_states = self._merge(hidden_states, self.config.block_grid(grid, index - 1), merge)
            elif limit is not None and index > self.levels[-1]:
                current = hidden_states.shape[1] - num_prefix
                current -= (current - limit) // (len(self.blocks) - index)
                hidden_states = hidden_states[:, : num_prefix + current]
            factors = self.path_factors(index, hidden_states, None if draws is None else draws[:, :, index])
            record = attentions[index].append if with_attentions else None
            hidden_states = block(hidden_states, ((1, hidden_states.shape[1]),), factors, record)
            if index in keep:
                kept[index] = hidden_states
        return self.norm(hidden_states), kept, attentions

    def forward_features(self, x: Tensor) -> Tensor:
        size = self.config.patch_size
        grid, tokens = Resolution(x.shape[-2] // size, x.shape[-1] // size), self.patch_generator(x)
        return self(tokens, TokenPlan(grid, count_tokens(self.config, None, grid, len(x)), decode=True))[0]

    def _merge(self, tokens: Tensor, grid: Resolution, merge: int) -> Tensor:
        prefix, patches = tokens.tensor_split([self.config.num_prefix_tokens], dim=1)
        patches = self.downscale_blocks[merge](patches, grid)
        return torch.cat([self.prefix_proj_blocks[merge](prefix).to(patches), patches], dim=1)

    def forward(  # pyrefly: ignore[bad-override]
        self,
        hidden_states: Tensor,
        layout: TokenPlan,
        keep: Collection[int] = (),
        draws: Tensor | None = None,
        with_attentions: bool = False,
    ) -> tuple[Tensor, dict[int, Tensor], list[list[Tensor]], GlobalTokens | None]:
        """Run encoder and decoder.

        Args:
            hidden_states: Tokens from the patch generator, `(batch, length, hidden)`.
            layout: Numbers of tokens and their places.
            keep: 0-based blocks of the encoder whose output is wanted too.
            draws: As in `RadioVisionTransformer.forward`.
            with_attentions: Whether to return the encoder's attention weights.

        Returns:
            The decoder's output, `(batch, prefix + rows * cols, hidden)`, without it the encoder's; what
            `RadioVisionTransformer.forward` returns of blocks; the global tokens.
        """
        grid, counts, decode = layout
        encoded, kept, attentions = self.encode(hidden_states, grid, counts, keep, draws, with_attentions)
        if counts is None:
            return encoded, kept, attentions, None
        prefix, patches = encoded.tensor_split([self.config.num_prefix_tokens], dim=1)
        tokens = patches[:, : counts.longest]
        mask = counts.mask(tokens.shape[0], counts.longest, tokens.device)
        if counts.by_image is not None:
            tokens = tokens.masked_fill(~mask[:, :, None], 0)
        decoded = self.decoder(tokens, counts, grid) if decode else encoded
        return decoded, kept, attentions, GlobalTokens(tokens, prefix, mask)


class Radio1dNetwork(RadioNetwork):
    """The network behind the models of a RADIO1D."""

    refused = {
        "image_grid_hw": "merged tokens (`downscale_levels`) are not packed. Call the model with images of one size, "
        "`(batch, channels, height, width)`",
        "window_size": "merged tokens (`downscale_levels`) have no windows. Fewer `num_tokens` and smaller images make "
        "RADIO1D faster",
    }

    def build_trunk(self, config: RadioConfig) -> nn.Module:
        return Radio1dTransformer(config)

    def encode(self, call: Call) -> NetworkOutput:
        """Run encoder and decoder.

        Raises:
            ValueError: If `num_tokens` is no number of at least 0, or not one for each image.
        """
        batch, counts = call.batch, None
        if not call.full_length:
            num_sequences = batch.num_images * batch.num_groups
            counts = count_tokens(self.config, call.num_tokens, batch.grid, num_sequences)
        embedded, path_draws = self.embed_batch(call)
        plan = TokenPlan(batch.grid, counts, call.decode)
        *passed, encoded = self.model(embedded, plan, call.keep, path_draws, call.with_attentions)
        return self.collect(call, embedded, *passed)._replace(encoded=encoded, is_decoded=call.decode)

    def block_map(self, tokens: Tensor, grid: Resolution, block: int) -> Tensor:
        """Return the patch tokens behind a block as a map, coarser behind each merging.

        Raises:
            ValueError: If tokens of the map were cut.
        """
        features, grid = self.patch_features(tokens), self.config.block_grid(grid, block)
        if features.shape[1] != grid.height * grid.width:
            raise ValueError(
                f"Block {block} has {features.shape[1]} of {grid.height} x {grid.width} tokens left, no map: "
                "`progressive_reduction` cuts them. `get_intermediate_features` runs without it."
            )
        return to_map(features, grid)
