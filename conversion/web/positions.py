"""A position table for a few image sizes only: what a page offers, and nothing of the thousands of other places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modeling_radio import RadioModel
from modeling_radio.layers_radio import PositionCache, RadioPatchGenerator


class OfferedPatchGenerator(RadioPatchGenerator):
    """A patch generator that knows the positions of grids whose longer side is one of a few, and of no others.

    In evaluation the network resizes its table to the longer side of the grid and crops it. These resized tables are
    what is kept, one after the other: 256, 384 and 512 px take 1,856 rows of patches of 16 px in place of 16,384.

    Args:
        generator: The network's own, whose layers are shared.
        sides: The longer sides in patches.

    Attributes:
        pos_embed: The tables, `(1, rows of all, hidden)`.
        places: For each side up to the largest, where its table begins and how long its rows are, `(sides, 2)`. A side
            that is not offered begins behind the end, so that it fails.
    """

    def __init__(self, generator: RadioPatchGenerator, sides: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.config = generator.config
        self.embedder, self.cls_token = generator.embedder, generator.cls_token
        self.resized = PositionCache()
        self.train(generator.training)
        largest = max(sides)
        if self.config.use_cropped_positions:
            tables = {side: generator.resized_positions(side, side) for side in sides}
        else:  # the corner of the one table, whatever the grid
            corner = generator.resized_positions(largest, largest)
            tables = dict.fromkeys(range(1, largest + 1), corner)
        rows = torch.cat(list({id(table): table for table in tables.values()}.values()), dim=1)
        places = torch.tensor([[rows.shape[1], 0]] * (largest + 1))
        start = 0
        for side, table in tables.items():
            places[side] = torch.tensor([start, table.shape[1] ** 0.5]).long()
            start += table.shape[1] if self.config.use_cropped_positions else 0
        self.pos_embed = nn.Parameter(rows.detach().clone())
        self.register_buffer("places", places)

    def _resize_positions(self, rows: int, cols: int) -> Tensor:
        side = torch.sym_max(rows, cols)
        place = self.places.index_select(0, torch.full((1,), side, dtype=torch.long, device=self.places.device))
        row, col = (torch.arange(size, device=place.device) for size in (rows, cols))
        index = place[:, 0] + (row[:, None] * place[:, 1] + col).flatten()
        return self.pos_embed.float().index_select(1, index)


def keep_offered_positions(model: RadioModel, sides: Sequence[int]) -> None:
    """Leave a model the positions of a few grids; a network without a position table stays as it is.

    Args:
        model: In evaluation mode; it is changed.
        sides: The longer sides of the grids in patches.
    """
    network = model.radio_model.model
    generator = getattr(network, "patch_generator", None) if model.config.eradio is None else None
    if generator is not None:
        with torch.no_grad():
            network.patch_generator = OfferedPatchGenerator(generator, sides)
