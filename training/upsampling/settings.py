"""Settings of an upsampler's training."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from modeling_radio.core.settings import DeviceOptions
from modeling_radio.training.recipes.recipe import RecipeCommand


MIN_SHARE = 0.5  # our choice: a view shows at least half of each side, so at twice the size nothing is enlarged


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
        largest_view: Largest side of a view over the image's; below 1 the whole image is not used as a view. At 0.5 a
            view covers as much as a tile.
        num_images: Number of different training images.
        num_views: Number of different views of each image. The teacher's features are kept, so a few views are cheap.
        memory_gb: Main memory for the teacher's features; those that do not fit are computed again at each use.
        learning_rate: Peak; FeatSharp's.
        warmup_steps: Steps with rising learning rate; FeatSharp's.
        max_grad_norm: Gradients are clipped to this norm; FeatSharp's.
        width: Width of the block.
        save_every: Steps between two saved states.
        measured_images: Held-out images that the result is measured on; 0 measures nothing.
        pictured_images: Number of them in the figure.
    """

    teacher: str
    output: Path | None = None
    overwrite: bool = False
    factor: int = Field(2, gt=1)
    num_steps: int = Field(3000, gt=0)
    batch_size: int = Field(4, gt=0)
    views: int = Field(4, gt=0)
    largest_view: float = Field(1.0, ge=MIN_SHARE, le=1)
    num_images: int = Field(4000, gt=0)
    num_views: int = Field(4, gt=0)
    memory_gb: float = Field(8.0, ge=0)  # our choice: for a machine of 16 GB; features of small teachers all fit
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: int = Field(100, ge=0)
    max_grad_norm: float = Field(5.0, gt=0)
    width: int = Field(256, gt=0, multiple_of=8)
    save_every: int = Field(100, gt=0)
    measured_images: int = Field(32, ge=0)
    pictured_images: int = Field(4, gt=0)

    @model_validator(mode="after")
    def _check_views(self) -> UpsamplerSettings:
        if self.views > self.num_views:
            raise ValueError(f"`views` must be at most `num_views`, {self.num_views}, got {self.views}.")
        return self

    def folder(self) -> Path:
        """Return the folder of the run."""
        return Path("runs") / "upsamplers" / self.teacher if self.output is None else self.output
