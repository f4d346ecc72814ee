"""Upsampling small enough for tests: a random teacher with a pattern of positions, and images with sharp edges."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling_radio.data.image_table import Images
from modeling_radio.data.settings import DataRecipe
from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.featsharp import UpsampledTeacher
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.training.upsampling.settings import UpsamplerSettings
from modeling_radio.training.upsampling.trainer import FixedTeacherFeatures, UpsamplerTrainer


PATCH, GRID = 8, 4
SIDE = PATCH * GRID


class PatternTeacher(Teacher):
    """Random features of patches, plus what only the place in its own grid decides."""

    image_mean, image_std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, name: str, *, source: str | None = None, feature_dim: int = 6) -> None:
        super().__init__(name, summary_dim=feature_dim, feature_dim=feature_dim, patch_size=PATCH, native_size_px=SIDE)
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(feature_dim, 3, PATCH, PATCH, generator=generator) / PATCH)
        self.pattern = torch.nn.Parameter(torch.randn(feature_dim, GRID, GRID, generator=generator))
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        content = torch.nn.functional.conv2d(pixel_values, self.weight, stride=PATCH)
        if content.shape[2:] != (GRID, GRID):
            return TeacherOutput(content.mean((2, 3)), content)
        return TeacherOutput(content.mean((2, 3)), content + self.pattern)


class Blocks(Images):
    """Squares of random colors, 4 px each."""

    def __init__(self, num_images: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        colors = torch.randint(0, 256, (num_images, 3, size // 4, size // 4), dtype=torch.uint8, generator=generator)
        self.images = colors.repeat_interleave(4, 2).repeat_interleave(4, 3)

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        return "blocks"

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def tiny_teacher_features(num_images: int = 8, factor: int = 2) -> FixedTeacherFeatures:
    teacher = PatternTeacher("pattern")
    teacher.set_run_mode(RunOptions(run_mode="fixed"))
    return FixedTeacherFeatures(teacher, Blocks(num_images, factor * SIDE), factor, seed=0)


def tiny_trainer(output: Path, **changes: Any) -> UpsamplerTrainer:
    options = {"num_steps": 60, "batch_size": 4, "views": 2, "learning_rate": 1e-2, "num_images": 8}
    settings = UpsamplerSettings(teacher="pattern", output=output, **{**options, **changes})
    form = UpsampledTeacher("pattern", None, {}, 6, SIDE, GRID)
    teacher_features = tiny_teacher_features(settings.num_images)
    return UpsamplerTrainer(settings, form, teacher_features, DataRecipe(source="blocks"))
