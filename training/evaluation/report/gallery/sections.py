"""A page of photographs through one model: its backbone beside teachers and adaptors, sizes, windows, and words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import resize

from foundation.checkpoints import with_windowed_blocks
from foundation.files import write_text
from modeling_radio.text_radio import SIMPLE_TEMPLATES
from modeling_radio.zero_shot_radio import DenseSource
from training.evaluation.models.radio import RadioFeatures, RadioTextFeatures
from training.evaluation.report.gallery.inside import depth_section, token_section
from training.evaluation.report.gallery.photographs import PHOTOGRAPH_PX, Gallery
from training.evaluation.report.page import Section, render
from training.evaluation.report.panels import SHOWN_PX, overlaid
from training.pictures.class_colors import class_color
from training.pictures.features import pca_colors
from training.pictures.foreground import most_salient_places
from training.pictures.similarity import marked, similarity_colors, similarity_maps


SCALES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Sizes of the strip, in sizes at which the model is at home; our choice. Those that it takes are shown."""


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
    """Yield the sections of the page: features, sizes, depth, windows (of RADIO1D numbers of tokens), and words.

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
    config = gallery.model.model.config
    if config.num_hidden_layers > 1:
        yield depth_section(gallery)
    if config.num_mergings:
        yield token_section(gallery)
    elif config.num_hidden_layers > 1:
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
    return Section("Teachers, adaptors, backbone", text, gallery.rows(columns, smooth={"photograph"}))


def size_section(gallery: Gallery) -> Section:
    """Show the backbone's features of the same photographs at several sizes, in one basis."""
    columns = {f"{size} px": pca_colors(gallery.maps_at(size), gallery.basis) for size in sizes_of(gallery.model)}
    own = gallery.model.size_px
    columns[f"{own} px, {gallery.shifts} x {gallery.shifts} shifts"] = pca_colors(gallery.answers[""], gallery.basis)
    text = "The backbone at several sizes of the image. Equal colors mean equal features, here over all pictures."
    return Section("Across resolutions", text, gallery.rows(columns))


def window_section(gallery: Gallery) -> Section:
    """Show the backbone with ViTDet windows beside global attention, at the largest size of the strip."""
    own = gallery.model
    network = with_windowed_blocks(own.model)
    model = RadioFeatures(network, own.processor, name=own.name, size_px=own.size_px, dtype=own.dtype)
    config, size = model.model.config, sizes_of(model)[-1]
    cells = size // model.patch_size
    whole = gallery.maps_at(size)
    columns = {f"{size} px, global": pca_colors(whole, gallery.basis)}
    for window in dict.fromkeys((max(1, cells // 2), max(1, cells // 4))):
        maps = gallery.maps_at(size, model, window)
        cosine = torch.cosine_similarity(maps, whole, dim=1).mean()
        columns[f"windows of {window} patches, mean cosine {cosine:.2f}"] = pca_colors(maps, gallery.basis)
    text = (
        f"Attention within windows of so many patches a side in {config.num_hidden_layers - len(config.global_blocks)} "
        f"of {config.num_hidden_layers} blocks, beside attention over the whole image."
    )
    return Section("Windows", text, gallery.rows(columns))


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
    return Section("Words", text, gallery.rows(columns, smooth={"nearest word"}), legend)


def sizes_of(model: RadioFeatures) -> list[int]:
    """Return the sizes of the strip, pixels: multiples of the patch that the model takes, up to the photographs'."""
    patch, largest = model.patch_size, min(model.max_size_px, PHOTOGRAPH_PX)
    wanted = {max(1, round(model.size_px * scale / patch)) * patch for scale in SCALES}
    return sorted(size for size in wanted | {model.size_px} if size <= largest or size == model.size_px)
