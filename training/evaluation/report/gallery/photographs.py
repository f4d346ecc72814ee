"""Photographs and who looks at them: maps of features, and rows of pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize

from training.evaluation.models.base import FeatureModel
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.report.page import Picture, Row
from training.evaluation.report.panels import SHOWN_PX
from training.evaluation.shifted import shifted_maps, window_of
from training.pictures.features import PcaBasis, fit_pca_basis
from training.pictures.foreground import clearest, foreground_map


PHOTOGRAPH_PX = 512
"""Side of the photographs from which all sizes are made, our choice."""


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
        """How much each place of the model's grid is part of a thing, `(num_photographs, rows, cols)`.

        Who says it clearest is asked; maps of adaptors that are finer than the model's are averaged.
        """
        adaptors = {name: self.answers[name] for name in self.adaptors}
        rows, cols = self.answers[""].shape[-2:]
        asked = (self.teacher_maps or adaptors or self.answers).values()
        return foreground_map(clearest([F.adaptive_avg_pool2d(maps, (rows, cols)) for maps in asked]))

    @cached_property
    def basis(self) -> PcaBasis:
        """In which the model's own features are drawn."""
        return self.basis_of(self.answers[""])

    def basis_of(self, features: Tensor) -> PcaBasis:
        """Return the basis of maps `(num_photographs, dim, rows, cols)`, of the foreground's components."""
        foreground = F.interpolate(self.things[:, None], features.shape[-2:], mode="nearest")[:, 0] > 0
        return fit_pca_basis(features, foreground=foreground)

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

    @torch.no_grad()
    def maps_at(
        self, size: int, model: RadioFeatures | None = None, window: int | Literal["global"] = "global"
    ) -> Tensor:
        """Return a model's features of the described part at one size, `(num_photographs, dim, rows, cols)`.

        Args:
            size: Side of the images in pixels.
            model: Who looks; None is the gallery's own.
            window: Side of ViTDet windows in patches.
        """
        chosen = model or self.model
        return torch.cat(
            [chosen.with_window(pixels, window).features.float().cpu() for pixels in self.pixels_at(size, chosen)]
        )

    def pixels_at(self, size: int, model: RadioFeatures | None = None) -> list[Tensor]:
        """Return what a model takes in of the described part, `(1, channels, size, size)` for each photograph."""
        chosen = model or self.model
        images = resize(self.described(), [size, size], antialias=True)
        return [chosen.preprocess(image, size)[None].to(chosen.device) for image in images]

    def rows(self, columns: Mapping[str, Tensor], smooth: Collection[str] = ()) -> list[Row]:
        """Return a row for each photograph.

        Args:
            columns: RGB images in [0, 1], `(num_photographs, rows, cols, 3)`, by caption. The photographs come first.
            smooth: Captions of those that are no grids of patches.
        """
        if "photograph" not in columns:
            columns = {"photograph": self.shown().movedim(1, -1).float() / 255, **columns}
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
            for number, name in enumerate(self.names)
        ]
