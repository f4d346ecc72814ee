"""ViTDet mode as NVIDIA's file of this name offers it, in our own words: set once, for the whole model."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class VitDetArgs:
    """Side of the windows in tokens, tokens before the patches, and which blocks stay global."""

    window_size: int
    num_summary_tokens: int
    num_windowed: int | None = None
    num_global: int | None = None


def apply_vitdet_arch(model: nn.Module, args: VitDetArgs) -> None:
    """Let all blocks but some attend in windows."""
    depth = len(model.blocks)
    period = args.num_windowed + 1 if args.num_windowed else depth // (args.num_global or 4)
    for index, block in enumerate(model.blocks):
        if index % period < period - 1 and index < depth - 1:
            block.attn.window = args.window_size


def to_windows(tokens: Tensor, rows: int, cols: int, side: int) -> Tensor:
    """Cut `(batch, rows * cols, width)` into `(batch * windows, side * side, width)`."""
    batch, _, width = tokens.shape
    cells = tokens.reshape(batch, rows // side, side, cols // side, side, width)
    return cells.transpose(2, 3).reshape(-1, side * side, width)


def from_windows(windows: Tensor, rows: int, cols: int, side: int) -> Tensor:
    """Put windows together again."""
    cells = windows.reshape(-1, rows // side, cols // side, side, side, windows.shape[-1])
    return cells.transpose(2, 3).reshape(-1, rows * cols, windows.shape[-1])
