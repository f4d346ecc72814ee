"""Settings of an upsampler's training."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from modeling_radio.core.settings import DeviceOptions
from modeling_radio.training.recipes.recipe import RecipeCommand


NUM_VIEWS = 4  # our choice: different views of each image; the teacher's features are kept, so a few views are cheap


class UpsamplerSettings(RecipeCommand, DeviceOptions):
    """Teacher, training and output of an upsampler.

    Attributes:
        teacher: Name of a teacher of the recipe; it runs at its `input_size_px` or native size.
        recipe: Recipe that names teacher and images, or a file of your own that ends in .yaml.
        output: Folder of the run; by default runs/upsamplers/TEACHER. The upsampler is the folder `upsampler` in it.
        overwrite: Replace a finished upsampler.
        factor: Ratio of the fine map's side to the teacher's.
        num_steps: Optimizer steps.
        batch_size: Images of a step.
        views: Views of an image in a step, besides the whole image.
        num_images: Number of different training images.
        memory_gb: Main memory for the teacher's features; those that do not fit are computed again at each use.
        learning_rate: Peak; FeatSharp's.
    """

    teacher: str
    output: Path | None = None
    overwrite: bool = False
    factor: int = Field(2, gt=1)
    num_steps: int = Field(3000, gt=0)
    batch_size: int = Field(4, gt=0)
    views: int = Field(NUM_VIEWS, gt=0, le=NUM_VIEWS)
    num_images: int = Field(4000, gt=0)
    memory_gb: float = Field(8.0, ge=0)  # our choice: for a machine of 16 GB; features of small teachers all fit
    learning_rate: float = Field(5e-4, gt=0)

    def folder(self) -> Path:
        """Return the folder of the run."""
        return Path("runs") / "upsamplers" / self.teacher if self.output is None else self.output
