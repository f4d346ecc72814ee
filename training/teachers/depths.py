"""What a teacher's own blocks say on the way to its answer."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class BlockListener:
    """Hears the outputs of some blocks in every pass of a network, for as long as that lives.

    Args:
        blocks: All blocks of the network, each from tokens or maps to such of the same width.
        depths: Shares of the blocks, above 0 and at most 1: a depth of 0.5 is the block in the middle.
    """

    def __init__(self, blocks: Sequence[nn.Module], depths: Sequence[float]) -> None:
        self.depths = tuple(depths)
        self._heard: dict[int, Tensor] = {}
        places = [max(1, round(depth * len(blocks))) - 1 for depth in depths]
        for place, index in enumerate(places):
            blocks[index].register_forward_hook(self._hook(place))

    def take_maps(self, rows: int, cols: int) -> list[Tensor]:
        """Return the maps `(batch, width, rows, cols)` of the last pass, one for each depth.

        They are normed over channels without weights (our choice), as the network's last norm does to its answer: the
        length of tokens grows from block to block.

        Args:
            rows: Patches of the images along their height.
            cols: And along their width. Patches are the last tokens of a sequence.
        """
        heard = [self._heard.pop(place) for place in range(len(self.depths))]
        return [_as_map(tokens, rows, cols) for tokens in heard]

    def _hook(self, place: int) -> Callable[..., None]:
        def hear(_module: nn.Module, _arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._heard[place] = output if isinstance(output, Tensor) else output[0]

        return hear


def _as_map(tokens: Tensor, rows: int, cols: int) -> Tensor:
    """Return `(batch, tokens, width)` or `(batch, rows, cols, width)` as a normed map, float32."""
    if tokens.ndim == 3:
        tokens = tokens[:, -rows * cols :].unflatten(1, (rows, cols))
    return F.layer_norm(tokens.float(), tokens.shape[-1:]).movedim(-1, 1)


def longest_list(network: nn.Module) -> Sequence[nn.Module]:
    """Return the longest list of modules of one class in a network: the blocks of a transformer; none without lists."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    alike = [list(each) for each in lists if len({type(block) for block in each}) == 1]
    return max(alike, key=len, default=[])
