"""Fields of the configuration that make a RADIO1D of the trunk: merged tokens, and a decoder back to the full grid."""

from collections.abc import Sequence
from dataclasses import dataclass

from .messages_radio import check_blocks
from .resolution_radio import Resolution
from .trunk_config_radio import ViTDetFields


@dataclass(kw_only=True, repr=False, eq=False)
class MergingFields(ViTDetFields):
    """RADIO1D: the encoder merges patches into wider tokens, of which the first `num_tokens` go through a decoder.

    Attributes:
        downscale_levels: 0-based blocks before which each 2 x 2 patches become one token of twice the width, ascending;
            `None` is the plain network, to which no other field here applies.
        merged_intermediate_sizes: Hidden width of the MLP behind each merging; `None` doubles it each time.
        qk_norm: Layer norm of queries and keys in the encoder.
        progressive_reduction: Cut the tokens down to `num_tokens` block by block after the last merging, so that
            outputs depend on how many are asked for; without, fewer tokens are the first ones of all.
        decoder_depth: Blocks of the decoder.
        decoder_upscale_levels: 0-based blocks of the decoder before which each token becomes 2 x 2 of half the width,
            ascending, one for each merging; `None` spreads them evenly, which for one merging is the middle.
        filler_grid_size: Rows and columns of the table of tokens that stand where none came; `None` spans
            `max_img_size`.
        num_tokens: Global tokens of each image that go through the decoder where a call does not say; `None` is all.

    References:
        RADIO1D. https://arxiv.org/abs/2607.03624
    """

    downscale_levels: list[int] | None = None
    merged_intermediate_sizes: list[int] | None = None
    qk_norm: bool = False
    progressive_reduction: bool = False
    decoder_depth: int = 6
    decoder_upscale_levels: list[int] | None = None
    filler_grid_size: int | None = None
    num_tokens: int | None = None

    @property
    def num_mergings(self) -> int:
        """How often 2 x 2 tokens become one; 0 in the plain network."""
        return len(self.downscale_levels or [])

    @property
    def global_hidden_size(self) -> int:
        """Width of the tokens behind the last merging."""
        return self.hidden_size << self.num_mergings

    @property
    def splitting_blocks(self) -> list[int]:
        """Blocks of the decoder before which tokens are split, ascending."""
        if self.decoder_upscale_levels is not None:
            return self.decoder_upscale_levels
        parts = self.num_mergings + 1
        return [self.decoder_depth * part // parts for part in range(1, parts)]

    @property
    def filler_side(self) -> int:
        """Rows and columns of the table of fillers."""
        return self.filler_grid_size or max(self.position_grid_size >> self.num_mergings, 1)

    @property
    def has_windowed_blocks(self) -> bool:
        """Whether ViTDet mode changes anything; tokens that are merged have no windows."""
        return not self.downscale_levels and super().has_windowed_blocks

    @property
    def global_blocks(self) -> list[int]:
        """Blocks that attend globally in ViTDet mode, ascending; of merged ones the last alone, which is decoded."""
        full = self.full_grid_blocks
        return [block for block in super().global_blocks if block in full]

    @property
    def full_grid_blocks(self) -> list[int]:
        """Blocks that heads can read: one token of `hidden_size` a patch. The last one stands for the decoder."""
        last = self.num_hidden_layers - 1
        return [block for block in range(self.num_hidden_layers) if block == last or self.count_merges(block) == 0]

    def count_merges(self, block: int) -> int:
        """Return how many mergings stand before the end of a 0-based block."""
        return sum(level <= block for level in self.downscale_levels or [])

    def block_hidden_size(self, block: int) -> int:
        """Return the width of the tokens behind a 0-based block."""
        return self.hidden_size << self.count_merges(block)

    def block_intermediate_size(self, merges: int) -> int:
        """Return the hidden width of the MLP behind so many mergings."""
        if merges and self.merged_intermediate_sizes is not None:
            return self.merged_intermediate_sizes[merges - 1]
        return self.intermediate_size << merges

    def decoder_heads(self, splits: int) -> int:
        """Return the attention heads of the decoder behind so many splittings; it begins with the narrow width's."""
        return max(self.num_attention_heads >> splits, 1)

    def block_grid(self, grid: Resolution, block: int) -> Resolution:
        """Return rows and columns of tokens behind a 0-based block; odd ones are filled up before they are merged."""
        return merged_grid(grid, self.count_merges(block))

    def count_global_tokens(self, grid: Resolution) -> int:
        """Return how many tokens an image can have at most; those that only filled up odd grids do not count."""
        return grid.height * grid.width // 4**self.num_mergings

    def check_full_grid(self, name: str, blocks: Sequence[int]) -> None:
        """Refuse blocks for heads that need one token a patch.

        Raises:
            ValueError: If one stands behind a merging and is not the last.
        """
        full = self.full_grid_blocks
        wrong = [block for block in blocks if block not in full]
        if wrong:
            nearest = min(full, key=lambda block: abs(block - wrong[0]))
            raise ValueError(
                f"`{name}` must be among {full}, before the tokens are merged, or the last, which stands for the "
                f"decoder, got {list(blocks)}. The nearest to {wrong[0]} is {nearest}."
            )

    def check_merging(self) -> None:
        """Refuse mergings and a decoder that cannot be built.

        Raises:
            ValueError: If a field contradicts another one, or is set for nothing.
        """
        if not self.downscale_levels:
            self._check_plain()
            return
        check_blocks("downscale_levels", self.downscale_levels, self.num_hidden_layers)
        count, levels = self.num_mergings, self.splitting_blocks
        is_ascending = levels == sorted(set(levels)) and all(0 <= level < self.decoder_depth for level in levels)
        if len(levels) != count or not is_ascending:
            raise ValueError(
                f"`decoder_upscale_levels` must be {count} ascending blocks in [0, {self.decoder_depth}), one for each "
                f"of `downscale_levels`, got {levels}."
            )
        for splits in range(count + 1):
            width, heads = self.global_hidden_size >> splits, self.decoder_heads(splits)
            if width % heads:
                raise ValueError(
                    f"`num_attention_heads` must leave heads that divide the decoder's width, got {heads} for {width} "
                    f"after {splits} splittings."
                )
        if self.merged_intermediate_sizes is not None and len(self.merged_intermediate_sizes) != count:
            raise ValueError(
                f"`merged_intermediate_sizes` must have one width for each of `downscale_levels` ({count}), got "
                f"{self.merged_intermediate_sizes}."
            )
        if self.vitdet_window_size is not None:
            raise ValueError(
                f"`vitdet_window_size` must be None with `downscale_levels`, got {self.vitdet_window_size}. Merged "
                "tokens have no windows."
            )
        if self.use_swiglu_ffn:
            raise ValueError("`use_swiglu_ffn` must be False with `downscale_levels`, got True.")

    def _check_plain(self) -> None:
        for name in ("qk_norm", "progressive_reduction"):
            if getattr(self, name):
                raise ValueError(f"`{name}` must be False without `downscale_levels`, got True.")
        if self.num_tokens is not None:
            raise ValueError(
                f"`num_tokens` must be None without `downscale_levels`, got {self.num_tokens}: this network has one "
                "token for each patch."
            )


def merged_grid(grid: Resolution, times: int) -> Resolution:
    """Return the rows and columns that are left of a grid whose 2 x 2 cells were merged `times` times."""
    rows, cols = grid
    for _ in range(times):
        rows, cols = (rows + 1) // 2, (cols + 1) // 2
    return Resolution(rows, cols)
