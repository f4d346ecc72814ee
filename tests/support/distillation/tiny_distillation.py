"""A distillation small enough for tests: a tiny student, two tiny random teachers and random images."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.io import write_png

import modeling_radio.training.teachers.registry
from modeling_radio.core.files import write_file
from modeling_radio.data.image_table import Images
from modeling_radio.data.settings import DataRecipe
from modeling_radio.training.distillation import inputs, tracking, trainer
from modeling_radio.training.distillation.checkpoints import SavedTensors
from modeling_radio.training.recipes.recipe import load_recipe
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import TeacherOutput


RECIPE = """
mixed_precision: "no"
student:
  preset: radio-test
  config: {num_hidden_layers: 2, vitdet_num_global: 1, drop_path_rate: 0.1}
  adaptor: {hidden_size: 24, num_inner_blocks: 0}
teachers:
  - {name: semantic, kind: tiny, options: {summary_dim: 10, feature_dim: 12}}
  - {name: segmenter, kind: tiny, options: {feature_dim: 9}}
data: {source: noise, num_images: 11, image_size_px: 64, num_workers: 0}
views: {teachers: online, max_shift_patches: 1, brightness: 0.1, contrast: 0.1}
partitions:
  - {name: low, sizes_px: [32, 48], batch_size: 4}
standardization: {calibration_steps: 2, estimation_steps: 6}
optimizer: {learning_rate: 1.0e-3}
schedule: {num_steps: 8, warmup_steps: 2}
ema: {decay: 0.9}
checkpoints: {every_steps: 3, keep: 2}
logging: {every_steps: 2, trackers: [], metrics_every_steps: null}
"""


REGULARIZED = ("damp.sigma=0.1", "spectral.is_used=true", "mesa={weight: 0.5, start_step: 1}")

# Images of several shapes, packed into one sequence, with windows.
PACKED = (
    "views.is_square=false",
    "student.config.vitdet_num_global=1",
    "partitions=[{name: low, sizes_px: [32, 48], token_budget: 40, vitdet_windows: [1], vitdet_ragged: true}]",
)

# For runs that split their batches differently: with a small epsilon, Adam turns the rounding of a gradient that should
# be zero into a full step.
SPLIT_SETTINGS = ("optimizer.learning_rate=0.1", "optimizer.eps=1")


class TinyTeacher(Teacher):
    image_mean, image_std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, name: str, *, source: str | None = None, feature_dim: int, summary_dim: int | None = None):
        super().__init__(name, summary_dim=summary_dim, feature_dim=feature_dim, patch_size=16)
        generator = torch.Generator().manual_seed(len(name))
        self.weight = torch.nn.Parameter(torch.randn(feature_dim, 3, 16, 16, generator=generator) / 16)
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        features = torch.nn.functional.conv2d(pixel_values, self.weight, stride=16)
        summary = None if self.summary_dim is None else features.mean((2, 3))[:, : self.summary_dim]
        return TeacherOutput(summary, features + 3)


class NoiseImages(Images):
    """Smooth random colors."""

    def __init__(self, data: DataRecipe, *, is_square: bool, used_px: int | None = None) -> None:
        assert data.source == "noise"
        generator = torch.Generator().manual_seed(data.seed)
        coarse = torch.rand(data.num_images or 8, 3, 4, 4, generator=generator)
        size = (data.image_size_px, data.image_size_px)
        self.images = (torch.nn.functional.interpolate(coarse, size, mode="bilinear") * 255).byte()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def fingerprint(self) -> str:
        return "noise"


def install_tiny_world(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(modeling_radio.training.teachers.registry.TEACHER_KINDS, "tiny", TinyTeacher)
    patch.setattr(inputs, "build_training_images", NoiseImages)


def write_command_recipe(folder: Path, teacher: str = f"{__name__}:TinyTeacher") -> Path:
    """Write images and a recipe for processes of their own, which have no tiny world but the `environment` below.

    Args:
        folder: Gets `tiny.yaml` and `images/`.
        teacher: Kind of the first teacher.
    """
    (folder / "images").mkdir()
    for number, image in enumerate(torch.randint(256, (11, 3, 64, 64), dtype=torch.uint8)):
        write_png(image, str(folder / "images" / f"{number}.png"))
    text = RECIPE.replace("source: noise", f"source: {folder / 'images'}").replace(
        "kind: tiny", f'kind: "{teacher}"', 1
    )
    (folder / "tiny.yaml").write_text(text.replace("kind: tiny,", f'kind: "{__name__}:TinyTeacher",'))
    return folder / "tiny.yaml"


def leave_progress_undrawn(patch: pytest.MonkeyPatch) -> None:
    """Let runs that are measured write an empty picture of their progress: drawing takes longer than all else."""
    patch.setattr(tracking, "draw_progress", lambda series, path: write_file(path, Path.touch))


def share_noise(patch: pytest.MonkeyPatch) -> None:
    """Let all ranks and parts of a step have the same noise on the weights, so that splitting it changes nothing."""
    patch.setattr(trainer, "noise_of", lambda batch: 0)


def distil(recipe_file: str, output: str, *overrides: str, stop_at: int | None = None) -> Path | None:
    return trainer.Distiller(load_recipe(recipe_file, overrides), Path(output)).run(stop_at)


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    names = ["student", "ema", "statistics", "optimizer", *(["taps"] if any(checkpoint.glob("taps*")) else [])]
    parts = {name: SavedTensors(checkpoint, name) for name in names}
    return {f"{name}/{key}": saved.read(key) for name, saved in parts.items() for key in saved.shapes}


def last_state(output: str, step: int = 8) -> dict[str, Tensor]:
    return tensors_of(Path(output) / "checkpoints" / f"step_{step:08d}")


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def environment() -> dict[str, str]:
    """Variables of a process of its own that finds the project and this module."""
    paths = [str(Path(trainer.__file__).parents[2]), str(Path(__file__).parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
