"""The ONNX graphs of a page: the network with all of its spaces, with windows and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from conversion.graphs.files import write_graph
from conversion.graphs.models import FlatRadio
from conversion.to_onnx import export_flat
from modeling_radio import RadioModel
from modeling_radio.outputs_radio import RadioModelOutput


TEXT_PATCHES = "text_patches"
"""Output with patches in the space of the texts, where no adaptor's features are that."""


class WebRadio(FlatRadio):
    """A model's dense features alone; patches may also go to the space of texts by a summary head, as in `segment`.

    Args:
        model: Whose outputs are wanted.
        adaptors: All that have dense features.
        window_size: Side of the ViTDet windows in tokens; `None` is global attention.
        text_head: That summary head.
    """

    def __init__(
        self, model: RadioModel, adaptors: Sequence[str], window_size: int | None, text_head: nn.Module | None
    ) -> None:
        of_network = "global" if model.config.eradio is None else None  # E-RADIO keeps its own windows
        super().__init__(model, adaptors, window_size or of_network)
        self.text_head = text_head
        self.names = [name for name in self.names if name.endswith("features")]
        if text_head is not None:
            self.names.append(TEXT_PATCHES)

    def read(self, output: RadioModelOutput) -> dict[str, Tensor]:
        tensors = super().read(output)
        if self.text_head is not None:
            tokens = self.model.radio_model.patch_features(output.last_hidden_state)
            tensors[TEXT_PATCHES] = self.text_head(tokens)
        return tensors


@dataclass(frozen=True)
class Space:
    """A space of dense features that the page shows.

    Attributes:
        name: Of the adaptor, or "backbone".
        title: For people.
        output: Of the graph.
        width: Numbers a patch.
        scale: How many times finer its grid is than the backbone's.
    """

    name: str
    title: str
    output: str
    width: int
    scale: int = 1


def find_spaces(model: RadioModel, adaptors: Sequence[str]) -> list[Space]:
    """Return the backbone's space and those of adaptors with dense features."""
    config = model.config
    spaces = [Space("backbone", "Backbone", "features", config.hidden_size)]
    for name in adaptors:
        adaptor = config.adaptor(name, argument="adaptors")
        if adaptor.feature_dim is not None:
            spaces.append(Space(name, name, f"{name}_features", adaptor.feature_dim, adaptor.upsample_factor))
    return spaces


def write_graphs(wrapped: Mapping[str, WebRadio], folder: Path) -> dict[str, Path]:
    """Export wrapped models to float32 files; return them by the same names.

    Args:
        wrapped: By the names of their files.
        folder: Where to write.
    """
    paths = {}
    for name, model in wrapped.items():
        paths[name] = folder / f"{name}.onnx"
        write_graph(export_flat(model).model, paths[name])
    return paths
