"""A page of photographs through a checkpoint: teachers, adaptors, backbone, sizes, windows, words and tasks."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize
from transformers.utils import logging as transformers_logging

from modeling_radio.checks_radio import Resolution
from modeling_radio.core.checkpoints import with_windowed_blocks
from modeling_radio.core.command_line import Command
from modeling_radio.core.ids import ModelFolder, name_of_folder
from modeling_radio.core.imports import find_function
from modeling_radio.core.machine import find_device
from modeling_radio.core.settings import DeviceOptions, OneOf
from modeling_radio.core.tables import counted
from modeling_radio.evaluation.features import at_night, match_at_night, shifted_maps, window_of
from modeling_radio.evaluation.models.radio import RadioFeatures, RadioTextFeatures, open_radio
from modeling_radio.evaluation.run import build_references
from modeling_radio.evaluation.tasks.representation import token_counts
from modeling_radio.figures.features import (
    PcaBasis,
    clearest,
    fit_pca_basis,
    foreground_map,
    hex_color,
    marked,
    most_salient_positions,
    only_where,
    overlaid,
    pca_colors,
    similarity_colors,
    similarity_maps,
    to_colors,
)
from modeling_radio.figures.page import (
    SHOWN_PX,
    CaptionedImage,
    ImageRow,
    Section,
    check_page,
    image_rows,
    write_page,
)
from modeling_radio.figures.predictions import Opened, open_model, predict
from modeling_radio.inputs_radio import WindowSize
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.training.recipes.recipe import Recipe, RecipeCommand
from modeling_radio.training.student.build import build_student
from modeling_radio.training.teachers.registry import build_teachers, reachable_teachers
from modeling_radio.zero_shot_radio import SIMPLE_TEMPLATES, DenseSource


PHOTOGRAPHS: dict[str, Callable[[int], tuple[list[str], Tensor]] | str] = {
    "demo": "modeling_radio.demo.closing_page:credited_photographs"
}
"""Import paths of functions of a size in pixels that return credits, and squares `(num_photographs, 3, size, size)`."""
PAGE = "index.html"
COMPARED = ("hidden_size", "num_hidden_layers", "patch_size")
"""Fields that an untrained student must share with a checkpoint to be shown beside it."""
PHOTOGRAPH_PX = 512
"""Side of the photographs before they are resized; our choice."""
SCALES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Sizes shown, as multiples of the model's own; our choice. Those that it does not take are left out."""
AT_NIGHT = "mirrored, closer, at night"
NUM_BLOCKS = 4
"""Blocks shown, evenly spread to the last; our choice, the four that DPT's decoder reads."""


class GallerySettings(RecipeCommand, DeviceOptions):
    """Images and models of the gallery.

    Attributes:
        checkpoint: Folder or Hub id of a RADIO model.
        output: Folder of the page.
        alone: Leave out the recipe's untrained student and its teachers.
        shifts: Number of shifts of the image for each patch and direction, for maps finer than the patch; a divisor of
            the patch size.
        size: Side of the images in pixels; by default the checkpoint's own.
        tasks: Folders of models tuned on labels.
        words: Texts that patches are compared with, for a checkpoint with a text tower.
        dense_source: Features of the patches: those of the summary head, or the teacher's.
        photographs: The demo's held-out photographs, or the import path of a function that returns yours, see
            `PHOTOGRAPHS`.
    """

    checkpoint: ModelFolder
    output: Path = Path("runs/gallery")
    alone: bool = False
    shifts: int = Field(4, gt=0)
    size: int | None = Field(None, gt=0)
    tasks: list[Path] = []
    words: list[str] = []
    dense_source: DenseSource = "summary_head"
    photographs: Annotated[str, OneOf(PHOTOGRAPHS, imports=True)] = "demo"


COMMAND = Command(
    "radio gallery",
    __doc__,
    GallerySettings,
    positionals=("checkpoint",),
    changes=Recipe,
    examples=("radio gallery runs/demo/final",),
)


def _write(settings: GallerySettings) -> None:
    transformers_logging.disable_progress_bar()
    page = settings.output / PAGE
    check_page(page)
    recipe = settings.load_recipe()
    device = find_device(settings.device)
    model = open_radio(settings.checkpoint, name="backbone", size_px=settings.size, device=device)
    tasks = [open_task_model(folder, device) for folder in settings.tasks]
    teachers: dict[str, FeatureModel] = {}
    untrained: dict[str, FeatureModel] = {}
    if not settings.alone:
        recipe = recipe.replace(teachers=reachable_teachers(recipe))
        teachers, untrained = dict(build_references(model, recipe)), _untrained(model, recipe)
    credits, photographs = find_function(settings.photographs, PHOTOGRAPHS, "photographs")(PHOTOGRAPH_PX)
    gallery = Gallery(model, photographs, credits, settings.shifts, teachers, untrained)
    sections = [
        *gallery.sections(settings.words, settings.dense_source),
        *(task_section(task, gallery.shown, credits) for task in tasks),
        Section(
            "Photographs",
            "Each with its credit; here they are cropped to squares. No recipe of the demo trains on the demo's, which "
            "may be shown again under the license of each.",
            items=credits,
        ),
    ]
    about = f"{settings.checkpoint}: images of {model.size_px} px, patches of {model.patch_size}."
    write_page(page, f"{counted(len(credits), 'photograph')} as one network sees them", about, sections)
    print(f"Open {page}: {counted(len(credits), 'photograph')}.")


def _untrained(model: RadioFeatures, recipe: Recipe) -> dict[str, FeatureModel]:
    """Return the student that the recipe starts from, if the checkpoint can have begun as it."""
    student = build_student(recipe, build_teachers(recipe.teachers, model.patch_size)).eval()
    if any(getattr(student.config, name) != getattr(model.model.config, name) for name in COMPARED):
        return {}
    return {"untrained backbone": RadioFeatures(student, name="untrained backbone", size_px=model.size_px)}


@dataclass(frozen=True)
class Gallery:
    """Photographs, and models whose features of them are shown.

    Attributes:
        model: The checkpoint.
        photographs: uint8 RGB, `(num_photographs, 3, PHOTOGRAPH_PX, PHOTOGRAPH_PX)`.
        names: Names of the photographs.
        shifts: Grid positions for each patch and direction.
        teachers: Teachers that the model has adaptors for, by name.
        backbones: Other models beside it, by name.
    """

    model: RadioFeatures
    photographs: Tensor
    names: Sequence[str]
    shifts: int
    teachers: Mapping[str, FeatureModel] = field(default_factory=dict)
    backbones: Mapping[str, FeatureModel] = field(default_factory=dict)

    def sections(self, words: Sequence[str] = (), source: DenseSource = "summary_head") -> Iterator[Section]:
        """Yield the sections of the page: features, sizes, depth, windows (of RADIO1D numbers of tokens), and words.

        Args:
            words: Texts that patches are compared with.
            source: Features of the patches; see `RadioForZeroShotImageClassification.segment`.

        Raises:
            ValueError: If there are words, but the model has no text tower.
        """
        model = self.model if isinstance(self.model, RadioTextFeatures) else None
        if words and model is None:
            raise ValueError(
                f"`words` must be left out for a checkpoint without a text tower, got {list(words)}. Pack one with "
                "`radio convert --text-tower`."
            )
        yield self.feature_section()
        yield self.size_section()
        config = self.model.model.config
        if config.num_hidden_layers > 1:
            yield self.depth_section()
        if config.num_mergings:
            yield self.token_section()
        elif config.num_hidden_layers > 1:
            yield self.window_section()
        if words and model is not None:
            yield self.word_section(model, words, source)

    def feature_section(self) -> Section:
        """Show teachers, adaptors and backbones, and the backbones' similarity to a marked patch."""
        positions, grid = most_salient_positions(self.things), self.things.shape[1:]
        columns = {"photograph": marked(to_colors(self.shown), positions, grid)}
        for name in self.adaptors:
            maps = self.student_maps[name]
            basis = self._basis_of(self.teacher_maps.get(name, maps))
            if name in self.teacher_maps:
                columns[f"teacher {name}"] = pca_colors(self.teacher_maps[name], basis)
            columns[f"adaptor {name}{basis.stretch(maps)}"] = pca_colors(maps, basis.with_range_of(maps))
        own = self.student_maps[""]
        columns["backbone"] = pca_colors(own, self._basis_of(own))
        columns["similar to the ring"] = similarity_colors(similarity_maps(own, positions))
        columns[AT_NIGHT] = to_colors(resize(at_night(self._covered), [SHOWN_PX, SHOWN_PX], antialias=True))
        for name, model in {**self.backbones, "backbone": self.model}.items():
            maps = own if model is self.model else self._maps_of(model)[""]
            others = self._maps_of(model, photographs=at_night(self.photographs))[""]
            found = match_at_night(maps, others, self.shifts)
            caption = f"found again at night, {found.share:.0%}: {name}"
            columns[caption] = only_where(to_colors(self.shown), found.is_right)
        text = (
            "Colors are three principal components of the foreground, "
            f"in {self.shifts} x {self.shifts} grid positions for each patch, from shifted images. An adaptor is "
            "drawn along the directions of its teacher, in a range of its own. x2 means that its range is half as "
            "wide, because a network that is not sure returns values near the mean. The ring's image shows the cosine "
            "of each patch with the one in the ring. The last images: the same photograph mirrored, closer and at "
            "night, and the places that a backbone finds again in it by the most similar features; all others are "
            "dark. The title counts those of all photographs that both views show."
        )
        return self._section("Teachers, adaptors, backbone", text, columns)

    def size_section(self) -> Section:
        """Show the backbone's features of the same photographs at several sizes, in one basis."""
        columns = {f"{size} px": pca_colors(self._maps_at(size), self._basis) for size in sizes_of(self.model)}
        caption = f"{self.model.size_px} px, {self.shifts} x {self.shifts} shifts"
        columns[caption] = pca_colors(self.student_maps[""], self._basis)
        text = "The backbone at several sizes of the image. Equal colors mean equal features, here over all images."
        return self._section("Across resolutions", text, columns)

    def depth_section(self) -> Section:
        """Show the backbone after blocks at even depths, each in a basis of its own."""
        depth = self.model.model.config.num_hidden_layers
        shown = min(NUM_BLOCKS, depth)
        blocks = [depth * (number + 1) // shown - 1 for number in range(shown)]
        columns = {
            f"after block {block + 1} of {depth}": pca_colors(maps)
            for block, maps in zip(blocks, self._maps_after(blocks), strict=True)
        }
        text = (
            "Patches after some of the blocks. Each has three principal components of its own: colors compare patches, "
            "not columns."
        )
        return self._section("Over depth", text, columns)

    def token_section(self) -> Section:
        """Show the map that RADIO1D's global tokens are made from, and the decoder's output from few of them."""
        model, size = self.model, self.model.size_px
        side = size // model.patch_size
        available = model.model.config.count_global_tokens(Resolution(side, side))
        (neck,) = self._maps_after([model.model.config.num_hidden_layers - 1])
        columns = {f"encoder, all {available} tokens": pca_colors(neck)}
        whole = self._maps_at(size)
        basis = fit_pca_basis(whole)
        for count in reversed(token_counts(available)):
            maps = self._maps_at(size, model.with_tokens(count))
            cosine = torch.cosine_similarity(maps, whole, dim=1).mean()
            columns[f"decoder, {counted(count, 'token')}, mean cosine {cosine:.2f}"] = pca_colors(maps, basis)
        text = (
            "The encoder's patches after the last block, in a basis of their own; then what the decoder makes of the "
            "first of them, in the basis of all."
        )
        return self._section("Global tokens", text, columns)

    def window_section(self) -> Section:
        """Show the backbone with ViTDet windows beside global attention, at the largest size shown."""
        own = self.model
        network = with_windowed_blocks(own.model)
        model = RadioFeatures(network, own.processor, name=own.name, size_px=own.size_px, dtype=own.dtype)
        config, size = model.model.config, sizes_of(model)[-1]
        side = size // model.patch_size
        whole = self._maps_at(size)
        columns = {f"{size} px, global": pca_colors(whole, self._basis)}
        for window in dict.fromkeys((max(1, side // 2), max(1, side // 4))):
            maps = self._maps_at(size, model, window)
            cosine = torch.cosine_similarity(maps, whole, dim=1).mean()
            columns[f"windows of {window} patches, mean cosine {cosine:.2f}"] = pca_colors(maps, self._basis)
        windowed = config.num_hidden_layers - len(config.global_blocks)
        text = (
            f"Attention within windows of so many patches a side in {windowed} of {config.num_hidden_layers} blocks, "
            "beside attention over the whole image."
        )
        return self._section("Windows", text, columns)

    @torch.no_grad()
    def word_section(self, model: RadioTextFeatures, words: Sequence[str], source: DenseSource) -> Section:
        """Show the word that each patch is nearest to."""
        classes = model.embed_classes(words, SIMPLE_TEMPLATES)
        overlays = []
        for image, covered in zip(self.shown, self._covered, strict=True):
            pixels = model.preprocess(covered, model.size_px)[None].to(model.device)
            (scores,) = model.segment(pixels, [classes.to(model.device)], source, {})
            overlays.append(overlaid(image, resize(scores.float().cpu(), [SHOWN_PX, SHOWN_PX])[0].argmax(dim=0)))
        legend = [(word, hex_color(index)) for index, word in enumerate(words)]
        columns = {"nearest word": to_colors(torch.stack(overlays))}
        rows = image_rows(self.names, self.shown, columns, smooth={"nearest word"})
        return Section("Words", "Each patch in the color of the word that it is nearest to.", legend=legend, rows=rows)

    @cached_property
    def student_maps(self) -> Mapping[str, Tensor]:
        """Maps of the model under "", and of its adaptors, `(num_photographs, dim, rows, cols)`."""
        return self._maps_of(self.model, self.adaptors)

    @property
    def adaptors(self) -> Sequence[str]:
        """The adaptors that are shown: those of the teachers, or all."""
        return list(self.teachers) or self.model.adaptor_names

    @cached_property
    def teacher_maps(self) -> Mapping[str, Tensor]:
        """The teachers' maps."""
        return {name: self._maps_of(teacher)[""] for name, teacher in self.teachers.items()}

    @cached_property
    def things(self) -> Tensor:
        """The foreground on the model's grid, `(num_photographs, rows, cols)`, see `foreground_map`.

        It is that of the clearest teacher or adaptor; maps finer than the model's are averaged.
        """
        adaptors = {name: self.student_maps[name] for name in self.adaptors}
        rows, cols = self.student_maps[""].shape[-2:]
        maps = (self.teacher_maps or adaptors or self.student_maps).values()
        return foreground_map(clearest([F.adaptive_avg_pool2d(each, (rows, cols)) for each in maps]))

    @cached_property
    def shown(self) -> Tensor:
        """The part of the photographs that the maps cover, uint8 `(num_photographs, 3, SHOWN_PX, SHOWN_PX)`."""
        return resize(self._covered, [SHOWN_PX, SHOWN_PX], antialias=True)

    @cached_property
    def _covered(self) -> Tensor:
        return window_of(self.photographs, self.model.size_px, self.model.patch_size)

    @cached_property
    def _basis(self) -> PcaBasis:
        return self._basis_of(self.student_maps[""])

    def _basis_of(self, features: Tensor) -> PcaBasis:
        """Return the basis of maps `(num_photographs, dim, rows, cols)`, of the foreground's components."""
        foreground = F.interpolate(self.things[:, None], features.shape[-2:], mode="nearest")[:, 0] > 0
        return fit_pca_basis(features, foreground=foreground)

    def _section(self, title: str, text: str, columns: Mapping[str, Tensor]) -> Section:
        smooth = {name for name in columns if "night" in name}
        return Section(title, text, rows=image_rows(self.names, self.shown, columns, smooth))

    def _maps_of(
        self, model: FeatureModel, adaptors: Sequence[str] = (), photographs: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Return maps of the photographs, or of others of their shape, on a grid finer than the patch."""
        size, patch = self.model.size_px, model.patch_size
        images = resize(self.photographs if photographs is None else photographs, [size + patch] * 2, antialias=True)
        return shifted_maps(model, images, size_px=size, shifts=self.shifts, adaptors=adaptors)

    @torch.no_grad()
    def _maps_at(self, size: int, model: RadioFeatures | None = None, window: WindowSize = "global") -> Tensor:
        """Return a model's features of the covered part at one size, `(num_photographs, dim, rows, cols)`."""
        chosen = model or self.model
        return torch.cat(
            [
                chosen.encode(pixels, window_size=window).features.float().cpu()
                for pixels in self._pixels_at(size, chosen)
            ]
        )

    @torch.no_grad()
    def _maps_after(self, blocks: list[int]) -> list[Tensor]:
        """Return maps after 0-based blocks, `(num_photographs, dim, rows, cols)`; of RADIO1D its encoder's."""
        found = [
            self.model.model.forward_intermediates(pixels, blocks, intermediates_only=True)
            for pixels in self._pixels_at(self.model.size_px)
        ]
        return [torch.cat(maps).float().cpu() for maps in zip(*found, strict=True)]

    def _pixels_at(self, size: int, model: RadioFeatures | None = None) -> list[Tensor]:
        """Return a model's input for the covered part, `(1, channels, size, size)` for each photograph."""
        chosen = model or self.model
        images = resize(self._covered, [size, size], antialias=True)
        return [chosen.preprocess(image, size)[None].to(chosen.device) for image in images]


def sizes_of(model: RadioFeatures) -> list[int]:
    """Return the sizes shown, pixels: multiples of the patch that the model takes, up to the photographs' size."""
    patch, largest = model.patch_size, min(model.max_size_px, PHOTOGRAPH_PX)
    wanted = {max(1, round(model.size_px * scale / patch)) * patch for scale in SCALES}
    return sorted(size for size in wanted | {model.size_px} if size <= largest or size == model.size_px)


def open_task_model(folder: Path, device: str = "cpu") -> Opened:
    """Open the folder of a tuned model on a device.

    Raises:
        ValueError: If it is no tuned model.
    """
    opened = open_model(str(folder), device)
    if not opened.has_head:
        raise ValueError(
            f"`tasks` must be folders of tuned models, got {str(folder)!r} of {type(opened.model).__name__!r}. Leave "
            "it out."
        )
    return opened


def task_section(task: Opened, photographs: Tensor, names: Sequence[str]) -> Section:
    """Show the predictions of a tuned model; objects count from their class's fitted score or 0.5 on.

    Args:
        task: The model.
        photographs: uint8 RGB, `(num_photographs, 3, height, width)`.
        names: Names of the photographs.
    """
    rows, indices = [], set[int]()
    threshold = 0.5 if task.model.config.score_thresholds is None else "tuned"
    for photograph, name in zip(photographs, names, strict=True):
        found = predict(task, photograph, threshold)
        indices |= {region.index for region in found.regions or []}
        predicted = CaptionedImage(found.drawn(), f"{name}: {found.description}", found.description)
        rows.append(ImageRow(name, [CaptionedImage(photograph, name, "photograph"), predicted]))
    legend = [(task.class_names[index], hex_color(index)) for index in sorted(indices)]
    folder, kind = Path(task.checkpoint), type(task.model).__name__
    return Section(f"Task: {name_of_folder(folder)}", f"{kind} in {folder}.", legend=legend, rows=rows)


main = partial(COMMAND.run, _write)


if __name__ == "__main__":
    sys.exit(main())
