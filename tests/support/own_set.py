"""A labeled set of a user's own: red and green squares, which `--data own_set:open_colors` names."""

from collections.abc import Sequence

import torch

from modeling_radio.core.opening import tensor_fingerprint
from modeling_radio.evaluation.data import Examples, Kind, Part, Stacked, check_kind
from modeling_radio.metrics.results import Source


class Colors:
    """Eight squares of two classes."""

    name = "colors"

    def __init__(self, size_px: int) -> None:
        self.labels = torch.arange(8) % 2
        self.images = torch.zeros(8, 3, size_px, size_px, dtype=torch.uint8)
        self.images[torch.arange(8), self.labels] = 250

    def kinds(self) -> frozenset[Kind]:
        return frozenset({"labels"})

    def part(self, kind: Kind) -> Part:
        check_kind(self.name, kind, self.kinds())
        fingerprint = tensor_fingerprint(self.images, self.labels)
        return Part(self.name, Examples(Stacked(self.images), fingerprint, self.labels), class_names=("red", "green"))

    def sources(self) -> list[Source]:
        return [Source(self.name, "evaluation", "CC0-1.0", "this file")]

    def remarks(self, neighbors: int) -> Sequence[str]:
        return ["Eight squares."]


def open_colors(size_px: int) -> Colors:
    return Colors(size_px)


def open_nothing(size_px: int) -> int:
    return size_px
