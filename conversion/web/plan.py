"""Plan of a page: its sizes, windows, feature spaces, words and classes, and the network that computes them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modeling_radio import RadioModel
from modeling_radio.checks_radio import check_multiple, own_names
from modeling_radio.conversion.graphs.files import write_graph
from modeling_radio.conversion.graphs.models import FlatRadio, size_step
from modeling_radio.conversion.to_onnx import export_flat
from modeling_radio.conversion.web.texts import Texts
from modeling_radio.layers_radio import PositionCache, RadioPatchGenerator
from modeling_radio.modeling_radio import RadioModelOutput
from modeling_radio.radseg_radio import SCALING, aggregate, choose_scra, encode_recursively
from modeling_radio.wrapped_radio import SummaryPool, WrappedTrunk
from modeling_radio.zero_shot_radio import DenseSource, align_patches


TEXT_PATCHES = "text_patches"
"""Output with patches in the space of the texts, after RADSeg's steps within the network."""
LOGITS = "logits"
"""Output with the logits of the classes, `(batch, num_labels)`."""
PATCH_LOGITS = "patch_logits"
"""Output with the logits of each patch as if the image had no other, `(batch, num_patches, num_labels)`."""
DEFAULT_WINDOW = 4
"""Window in patches. Our choice: windows of 8, as released models have, do not divide most small images."""
DEFAULT_LARGEST = 512
"""Largest size in pixels where none are given: the preferred one of C-RADIOv4."""
FINEST_GRID = 3
"""Largest ratio of a size to the model's largest side: in training a crop of the position table, of a tenth of it or
more, is stretched over the whole grid (AM-RADIO, appendix C), as if the image were three times as large."""


class OfferedPatchGenerator(RadioPatchGenerator):
    """A patch generator with the positions of only those grids whose longer side the page offers.

    In evaluation the network resizes its table to the longer side of the grid and crops it. Only these resized tables
    are kept, one after the other: 256, 384 and 512 px take 1,856 rows of patches of 16 px in place of 16,384.

    Args:
        generator: The network's own, whose layers are shared.
        sides: The longer sides in patches.

    Attributes:
        pos_embed: The tables, `(1, rows of all, hidden)`.
        spans: First index and row length of the table of each side up to the largest, `(sides, 2)`. A side that is
            not offered begins behind the end, so that it fails.
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
        spans = torch.tensor([[rows.shape[1], 0]] * (largest + 1))
        start = 0
        for side, table in tables.items():
            spans[side] = torch.tensor([start, table.shape[1] ** 0.5]).long()
            start += table.shape[1] if self.config.use_cropped_positions else 0
        self.pos_embed = nn.Parameter(rows.detach().clone())
        self.register_buffer("spans", spans)

    def _resize_positions(self, rows: int, cols: int) -> Tensor:
        side = torch.sym_max(rows, cols)
        table_span = self.spans.index_select(0, torch.full((1,), side, dtype=torch.long, device=self.spans.device))
        row, col = (torch.arange(size, device=table_span.device) for size in (rows, cols))
        index = table_span[:, 0] + (row[:, None] * table_span[:, 1] + col).flatten()
        return self.pos_embed.float().index_select(1, index)


def keep_offered_positions(model: RadioModel, sides: Sequence[int]) -> None:
    """Remove all positions of a model but those of a few grids; a network without a position table does not change.

    Args:
        model: In evaluation mode; it is changed.
        sides: The longer sides of the grids in patches.
    """
    network = model.radio_model.model
    generator = None if model.config.is_foreign else getattr(network, "patch_generator", None)
    if generator is not None:
        with torch.no_grad():
            network.patch_generator = OfferedPatchGenerator(generator, sides)


def find_pool(model: RadioModel) -> SummaryPool | None:
    """Return the layer that makes the summary of the features alone; `None` for networks with a class token."""
    network = model.radio_model
    is_pooled = isinstance(network.model, WrappedTrunk) and network.feature_normalizer is None
    return network.model.pool if is_pooled else None  # pyrefly: ignore[missing-attribute]


class WebRadio(FlatRadio):
    """A model's dense features, the logits of a classifier, and the patches that words are compared with.

    Where the summary is made of the features alone, the classifier also reads each patch as if the image had no other.
    The patches for words are as in `segment` with SCGA and, where the network can have it, SCRA: in one pass, without
    sliding windows.

    Args:
        model: The model.
        adaptors: Adaptors with dense features.
        window_size: Side of the ViTDet windows in tokens; `None` is global attention.
        text_space: Adaptor of the texts; `None` for none.
        text_source: Mapping of patches into its space, see `segment`.
        classifier: Head of a `RadioForImageClassification` around the model; `None` for none.
    """

    def __init__(
        self,
        model: RadioModel,
        adaptors: Sequence[str],
        window_size: int | None,
        text_space: str | None = None,
        text_source: DenseSource = "summary_head",
        classifier: nn.Module | None = None,
    ) -> None:
        of_network = "global" if model.config.eradio is None else None  # E-RADIO keeps its own windows
        super().__init__(model, adaptors, window_size or of_network)
        self.text_space, self.text_source, self.classifier = text_space, text_source, classifier
        self.names = [name for name in self.names if name.endswith("features")]
        if classifier is not None:
            self.names.append(LOGITS)
            if find_pool(model) is not None:
                self.names.append(PATCH_LOGITS)
        if text_space is not None:
            self.names.append(TEXT_PATCHES)
            self.scra = choose_scra(model.radio_model, "auto")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        if self.text_space is None:
            return super().forward(pixel_values)
        network = self.model.radio_model
        passed, tokens = encode_recursively(network, pixel_values, self.window_size, self.scra)
        tensors = self.read(network.make_output(passed, self.adaptors))
        patches = aggregate(network.patch_features(tokens), SCALING)
        aligned = align_patches(network, self.text_space, patches, passed.grid, self.text_source)
        tensors[TEXT_PATCHES] = aligned.flatten(2).mT
        return tuple(tensors[name] for name in self.names)

    def read(self, output: RadioModelOutput) -> dict[str, Tensor]:
        tensors = super().read(output)
        if self.classifier is not None:
            tensors[LOGITS] = self._classify(tensors["summary"], tensors["features"])
            pool = find_pool(self.model)
            if pool is not None:
                patches = tensors["features"].flatten(0, 1)[:, None]
                summaries = pool(patches)[:, self.model.config.summary_idxs].flatten(1)
                logits = self._classify(summaries, patches)
                tensors[PATCH_LOGITS] = logits.unflatten(0, tensors["features"].shape[:2])
        return tensors

    def _classify(self, summary: Tensor, features: Tensor) -> Tensor:
        assert self.classifier is not None
        is_both = self.model.config.classifier_pooling == "summary_and_features"
        return self.classifier(torch.cat([summary, features.mean(dim=-2)], dim=-1) if is_both else summary)


@dataclass(frozen=True)
class Space:
    """A space of dense features that the page shows.

    Attributes:
        name: Name of the adaptor, or "backbone".
        title: Name on the page.
        output: Output of the graph.
        width: Channels of a patch.
        scale: Factor by which its grid is finer than the backbone's.
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
    """Export wrapped models to float32 files of their names in a folder; return the files by the same names."""
    paths = {name: folder / f"{name}.onnx" for name in wrapped}
    for name, model in wrapped.items():
        write_graph(export_flat(model).model, paths[name])
    return paths


@dataclass(frozen=True)
class PagePlan:
    """Content of a page.

    Attributes:
        adaptors: Adaptors that the graphs compute.
        spaces: Spaces that are shown.
        sizes: Pixels of an image's longer side, ascending.
        step: Both sides are multiples of so many pixels.
        window: Side of the windows in patches; `None` for none.
        window_step: With windows both sides are multiples of so many pixels.
        text_space: Space in which words and patches are compared, if there are words.
        text_source: Mapping of patches into that space.
        classifier: Head that gives the whole image a class of the model's configuration, if there is one.
    """

    adaptors: list[str]
    spaces: list[Space]
    sizes: list[int]
    step: int
    window: int | None
    window_step: int
    text_space: Space | None
    text_source: DenseSource
    classifier: nn.Module | None = None

    def wrap(self, model: RadioModel) -> dict[str, WebRadio]:
        """Return the modules to export: "global", and "windows" if there are any."""
        windows = {"global": None} if self.window is None else {"global": None, "windows": self.window}
        space = None if self.text_space is None else self.text_space.name
        return {
            name: WebRadio(model, self.adaptors, window, space, self.text_source, self.classifier)
            for name, window in windows.items()
        }


def plan_page(
    model: RadioModel,
    texts: Texts | None = None,
    *,
    adaptors: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    window_size: int | None = None,
    classifier: nn.Module | None = None,
) -> PagePlan:
    """Decide the content of a page; see the settings of `radio export --to web`.

    Args:
        model: The page's model.
        texts: Its text side.
        adaptors: Adaptors whose spaces are shown; `None` takes the model's own list.
        sizes: Pixels of the longer side; `None` takes three.
        window_size: In patches, 0 for none; `None` takes 4 where some blocks have windows.
        classifier: Head of a `RadioForImageClassification` around the model, if the page names images.

    Raises:
        ValueError: If the model takes other images than RGB, an adaptor is unknown, a size is not possible, or windows
            are set for a model that has none.
    """
    if model.config.num_channels != 3:
        raise ValueError(f"`checkpoint` must take RGB images, got {model.config.num_channels} channels.")
    given = (model.config.adaptor_names or []) if adaptors is None else adaptors
    names = own_names("adaptors", given, model.config.all_adaptor_names)
    spaces = find_spaces(model, names)
    source = "summary_head" if texts is None else texts.model.usual_dense_source
    text_space = None if texts is None else _text_space(model, texts, source)
    computed = [space.name for space in spaces[1:]]
    step = size_step(model.config, None)
    window = _choose_window(model, window_size)
    window_step = step if window is None else step * window
    sizes = _choose_sizes(model, sizes, window_step)
    return PagePlan(computed, spaces, sizes, step, window, window_step, text_space, source, classifier)


def _choose_window(model: RadioModel, window_size: int | None) -> int | None:
    is_possible = model.config.eradio is None and model.config.has_windowed_blocks  # E-RADIO's are its own
    fits = 2 * DEFAULT_WINDOW * model.patch_size <= model.max_resolution
    if window_size is None:
        return DEFAULT_WINDOW if is_possible and fits else None
    if window_size and not is_possible:
        raise ValueError(
            f"`window_size` must be 0, because no block of this model can have windows, got {window_size}."
        )
    if 2 * window_size * model.patch_size > model.max_resolution:
        raise ValueError(f"`window_size` must leave two windows in {model.max_resolution} px, got {window_size}.")
    return window_size or None


def _choose_sizes(model: RadioModel, sizes: Sequence[int] | None, step: int) -> list[int]:
    if sizes is None:
        largest = min(DEFAULT_LARGEST, model.max_resolution) // step
        return sorted({max(round(share * largest), 1) * step for share in (0.5, 0.75, 1)})
    if not sizes:
        raise ValueError("`sizes` must have at least one, got none.")
    largest = model.max_resolution * (FINEST_GRID if model.config.use_cropped_positions else 1)
    for size in sizes:
        check_multiple("`sizes`", size, size, step, largest)
    if max(sizes) > model.max_resolution:
        warnings.warn(f"`sizes` of {max(sizes)} px: the model was made for {model.max_resolution} px.", stacklevel=3)
    return sorted(set(sizes))


def _text_space(model: RadioModel, texts: Texts, source: DenseSource) -> Space:
    """Return the space that words and patches share: that of an adaptor's features, or of its summary head."""
    adaptor, scale = texts.model.image_adaptor, 1
    if source == "features":
        if adaptor.feature_dim != texts.model.text_width:
            raise ValueError(
                f"`feature_dim` of adaptor {adaptor.name!r} must be {texts.model.text_width}, the width of the texts "
                f"of a sentence encoder, got {adaptor.feature_dim}."
            )
        scale = model.config.adaptor(adaptor.name).upsample_factor
    return Space(adaptor.name, adaptor.name, TEXT_PATCHES, texts.model.text_width, scale)
