"""A page of photographs through one model: its backbone beside teachers and adaptors, sizes, windows, and words."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from foundation.files import write_text
from modeling_radio import RadioModel
from modeling_radio.text_radio import SIMPLE_TEMPLATES
from modeling_radio.zero_shot_radio import DenseSource
from training.evaluation.models.base import FeatureModel
from training.evaluation.models.radio import RadioFeatures, RadioTextFeatures
from training.evaluation.report.page import Picture, Row, Section, render
from training.evaluation.report.panels import SHOWN_PX, class_color, overlaid
from training.evaluation.shifted import shifted_maps, window_of
from training.pictures.features import PcaBasis, fit_pca_basis, pca_colors
from training.pictures.foreground import clearest, foreground_map, most_salient_places
from training.pictures.similarity import marked, similarity_colors, similarity_maps


PHOTOGRAPH_PX = 512
"""Side of the photographs from which all sizes are made, our choice."""
SCALES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Sizes of the strip, in sizes at which the model is at home; our choice. Those that it takes are shown."""


@dataclass(frozen=True)
class Gallery:
    """Photographs and who looks at them.

    Attributes:
        model: What is shown.
        photographs: uint8 RGB, `(num_photographs, 3, PHOTOGRAPH_PX, PHOTOGRAPH_PX)`.
        names: Of the photographs.
        shifts: Cells for each patch and direction.
        teachers: By name, those that the model has adaptors for.
        backbones: Other models to set beside it, by name.
    """

    model: RadioFeatures
    photographs: Tensor
    names: Sequence[str]
    shifts: int
    teachers: Mapping[str, FeatureModel] = field(default_factory=dict)
    backbones: Mapping[str, FeatureModel] = field(default_factory=dict)

    @cached_property
    def answers(self) -> Mapping[str, Tensor]:
        """Maps of the model under "", and of its adaptors, `(num_photographs, dim, rows, cols)`."""
        return self.maps_of(self.model, list(self.adaptors))

    @property
    def adaptors(self) -> Sequence[str]:
        """The adaptors that are shown: those of the teachers, or all."""
        return list(self.teachers) or self.model.adaptor_names

    @cached_property
    def teacher_maps(self) -> Mapping[str, Tensor]:
        """The teachers' maps."""
        return {name: self.maps_of(teacher)[""] for name, teacher in self.teachers.items()}

    @cached_property
    def things(self) -> Tensor:
        """How much each place is part of a thing, `(num_photographs, rows, cols)`, by who says it clearest."""
        adaptors = {name: self.answers[name] for name in self.adaptors}
        return foreground_map(clearest((self.teacher_maps or adaptors or self.answers).values()))

    @cached_property
    def basis(self) -> PcaBasis:
        """In which the model's own features are drawn."""
        return self.basis_of(self.answers[""])

    def basis_of(self, features: Tensor) -> PcaBasis:
        """Return the basis of maps, of the foreground's components."""
        return fit_pca_basis(features, foreground=self.things > 0)

    def maps_of(self, model: FeatureModel, adaptors: Sequence[str] = ()) -> Mapping[str, Tensor]:
        """Return maps of the photographs, on a grid finer than the patch."""
        size, patch = self.model.size_px, model.patch_size
        images = resize(self.photographs, [size + patch] * 2, antialias=True)
        return shifted_maps(model, images, size_px=size, shifts=self.shifts, adaptors=adaptors)

    def described(self) -> Tensor:
        """Return the part of the photographs that the maps show, uint8 `(num_photographs, 3, side, side)`."""
        return window_of(self.photographs, self.model.size_px, self.model.patch_size)

    def shown(self) -> Tensor:
        """Return that part as the page shows it, uint8 `(num_photographs, 3, SHOWN_PX, SHOWN_PX)`."""
        return resize(self.described(), [SHOWN_PX, SHOWN_PX], antialias=True)


def write_gallery(path: Path, sections: Sequence[Section], *, title: str, text: str, credits: Sequence[str]) -> None:
    """Write the page; a reader never sees half of it.

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    page = render("gallery.html.jinja", title=title, text=text, sections=sections, credits=credits)
    write_text(path, page)


def gallery_sections(
    gallery: Gallery, words: Sequence[str] = (), source: DenseSource = "summary_head"
) -> Iterator[Section]:
    """Yield the sections of the page: features, sizes, windows, and words where there are some.

    Args:
        gallery: What is shown.
        words: Texts that patches are compared with.
        source: Which patches; see `RadioForZeroShotImageClassification.segment`.

    Raises:
        ValueError: If there are words, but the model has no text tower.
    """
    if words and not isinstance(gallery.model, RadioTextFeatures):
        raise ValueError(
            f"`words` must be left out for a checkpoint without a text tower, got {list(words)}. Pack one with "
            "`python -m conversion.from_nvidia --text-tower`."
        )
    yield feature_section(gallery)
    yield size_section(gallery)
    if gallery.model.model.config.num_hidden_layers > 1:
        yield window_section(gallery)
    if words and isinstance(gallery.model, RadioTextFeatures):
        yield word_section(gallery, gallery.model, words, source)


def feature_section(gallery: Gallery) -> Section:
    """Show teachers beside adaptors beside backbones, and what the backbones hold to be alike a marked place."""
    places, grid = most_salient_places(gallery.things), gallery.things.shape[1:]
    photographs = gallery.shown().movedim(1, -1).float() / 255
    columns = {"photograph": marked(photographs, places, grid)}
    for name in gallery.adaptors:
        said = gallery.answers[name]
        basis = gallery.basis_of(gallery.teacher_maps.get(name, said))
        if name in gallery.teacher_maps:
            columns[f"teacher {name}"] = pca_colors(gallery.teacher_maps[name], basis)
        columns[f"adaptor {name}{basis.stretch(said)}"] = pca_colors(said, basis.with_range_of(said))
    backbones = {name: gallery.maps_of(model)[""] for name, model in gallery.backbones.items()}
    backbones["backbone"] = gallery.answers[""]
    for name, maps in backbones.items():
        columns[name] = pca_colors(maps, gallery.basis_of(maps))
    for name, maps in backbones.items():
        columns[f"alike the ring: {name}"] = similarity_colors(similarity_maps(maps, places))
    text = (
        "Three principal components of the foreground as red, green and blue, "
        f"{gallery.shifts} x {gallery.shifts} cells for each patch, from shifted images. An adaptor is drawn along the "
        "directions of its teacher in a range of its own; x2 means that it is half as wide: who is not sure answers "
        "nearer to the mean. Last, the cosine of every place with the one in the ring, of all the backbone's features."
    )
    return Section("Teachers, adaptors, backbone", text, _rows(gallery, columns, smooth={"photograph"}))


def size_section(gallery: Gallery) -> Section:
    """Show the backbone's features of the same photographs at several sizes, in one basis."""
    columns = {f"{size} px": pca_colors(_maps_at(gallery, size), gallery.basis) for size in sizes_of(gallery.model)}
    own = gallery.model.size_px
    columns[f"{own} px, {gallery.shifts} x {gallery.shifts} shifts"] = pca_colors(gallery.answers[""], gallery.basis)
    text = "The backbone at several sizes of the image. Equal colors mean equal features, here over all pictures."
    return Section("Across resolutions", text, _rows(gallery, columns))


def window_section(gallery: Gallery) -> Section:
    """Show the backbone with ViTDet windows beside global attention, at the largest size of the strip."""
    model = with_windowed_blocks(gallery.model)
    config, size = model.model.config, sizes_of(model)[-1]
    cells = size // model.patch_size
    whole = _maps_at(gallery, size)
    columns = {f"{size} px, global": pca_colors(whole, gallery.basis)}
    for window in dict.fromkeys((max(1, cells // 2), max(1, cells // 4))):
        maps = _maps_at(gallery, size, model, window)
        cosine = torch.cosine_similarity(maps, whole, dim=1).mean()
        columns[f"windows of {window} patches, mean cosine {cosine:.2f}"] = pca_colors(maps, gallery.basis)
    text = (
        f"Attention within windows of so many patches a side in {config.num_hidden_layers - len(config.global_blocks)} "
        f"of {config.num_hidden_layers} blocks, beside attention over the whole image."
    )
    return Section("Windows", text, _rows(gallery, columns))


def with_windowed_blocks(model: RadioFeatures) -> RadioFeatures:
    """Return a model itself, or one that is too shallow for its number of global blocks with half as many as blocks."""
    if model.model.config.has_windowed_blocks:
        return model
    config = copy.deepcopy(model.model.config)
    config.vitdet_num_global = config.num_hidden_layers // 2
    network = RadioModel(config).eval().to(model.model.dtype).to(model.device)  # pyrefly: ignore[bad-argument-type]
    network.load_state_dict(model.model.state_dict())
    return RadioFeatures(network, model.processor, name=model.name, size_px=model.size_px, dtype=model.dtype)


@torch.no_grad()
def word_section(gallery: Gallery, model: RadioTextFeatures, words: Sequence[str], source: DenseSource) -> Section:
    """Show which of some words each patch is nearest to."""
    classes = model.embed_classes(words, SIMPLE_TEMPLATES)
    images, pictures = gallery.shown(), []
    for image in gallery.described():
        pixels = model.preprocess(image, model.size_px)[None].to(model.device)
        patches = model.aligned_patches(pixels, source).float().cpu()
        scores = torch.einsum("bdhw,cd->bchw", torch.nn.functional.normalize(patches, dim=1), classes)
        pictures.append(resize(scores, [SHOWN_PX, SHOWN_PX])[0].argmax(dim=0))
    overlays = [overlaid(image, mask) for image, mask in zip(images, pictures, strict=True)]
    columns = {"nearest word": torch.stack(overlays).movedim(1, -1).float() / 255}
    legend = [(word, "rgb({}, {}, {})".format(*class_color(index))) for index, word in enumerate(words)]
    text = "Each patch in the color of the word that it is nearest to."
    return Section("Words", text, _rows(gallery, columns, smooth={"nearest word"}), legend)


def sizes_of(model: RadioFeatures) -> list[int]:
    """Return the sizes of the strip, pixels: multiples of the patch that the model takes, up to the photographs'."""
    patch, largest = model.patch_size, min(model.max_size_px, PHOTOGRAPH_PX)
    wanted = {max(1, round(model.size_px * scale / patch)) * patch for scale in SCALES}
    return sorted(size for size in wanted | {model.size_px} if size <= largest or size == model.size_px)


@torch.no_grad()
def _maps_at(
    gallery: Gallery, size: int, model: RadioFeatures | None = None, window: int | Literal["global"] = "global"
) -> Tensor:
    """Return the backbone's features of the described part at one size, `(num_photographs, dim, rows, cols)`."""
    model = model or gallery.model
    images = resize(gallery.described(), [size, size], antialias=True)
    pixels = [model.preprocess(image, size)[None].to(model.device) for image in images]
    return torch.cat([model.with_window(each, window).features.float().cpu() for each in pixels])


def _rows(gallery: Gallery, columns: Mapping[str, Tensor], smooth: Collection[str] = ()) -> list[Row]:
    """Return a row for each photograph, of RGB images in [0, 1], `(num_photographs, rows, cols, 3)`, by caption."""
    if "photograph" not in columns:
        columns = {"photograph": gallery.shown().movedim(1, -1).float() / 255, **columns}
        smooth = {*smooth, "photograph"}
    return [
        Row(
            name,
            [
                Picture(
                    (images[number].movedim(-1, 0) * 255).round().to(torch.uint8),
                    f"{name}: {caption}",
                    caption,
                    is_grid=caption not in smooth,
                )
                for caption, images in columns.items()
            ],
        )
        for number, name in enumerate(gallery.names)
    ]
