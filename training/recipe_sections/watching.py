"""What is saved and shown of a run."""

from typing import Literal

from pydantic import Field, model_validator

from foundation.settings import require
from training.recipe_sections.base import Count, RecipeSection


class CheckpointsRecipe(RecipeSection):
    """When to save and how many to keep. Not part of what a resumed run must have in common.

    Attributes:
        every_steps: Steps between two checkpoints; the last step always writes one.
        keep: Newest checkpoints that stay.
    """

    every_steps: int = Field(1000, gt=0)
    keep: int = Field(2, gt=0)


class ExportRecipe(RecipeSection):
    """What is fitted to the student where it is exported. Not part of what a resumed run must have in common.

    Attributes:
        feature_normalizer: Standardize the backbone's dense features by PHI-S of their own, as some of NVIDIA's
            checkpoints do: zero mean, unit variance in each channel. The adaptors' answers stay. transformers' native
            RADIO has no such layer: opened without trust, the features are those before it.
        intermediate_normalizers: The same for `get_intermediate_features`: "none", a rotation "per_block", or one that
            is "shared" by all, with a mean and a scale for each.
        normalizer_images: Training images that they are fitted to, at the sizes that are trained; at least this many.
    """

    feature_normalizer: bool = False
    intermediate_normalizers: Literal["none", "per_block", "shared"] = "none"
    normalizer_images: Count = 2048

    @property
    def has_normalizers(self) -> bool:
        """Whether any are asked for."""
        return self.feature_normalizer or self.intermediate_normalizers != "none"


class LoggingRecipe(RecipeSection):
    """What can be watched. Not part of what a resumed run must have in common.

    Attributes:
        every_steps: Steps between two records.
        trackers: Names of Accelerate's trackers, for example `[tensorboard]`.
        use_progress_bar: Show a progress bar on the terminal.
        picture_every_steps: Steps between two pictures of held-out images; None draws none.
        picture_source: Where these images come from: "demo" or "demo-pypi", or a folder of images, whose held-out part
            is shown; None for `data.source`, if it is one of these. A folder that is streamed is all trained on.
        metrics_every_steps: Steps between two measurements on held-out images, those of `picture_source`; the last
            step is always measured. None for no measurements.
        metrics_sizes_px: Sides of the images that are measured; None for the smallest, middle and largest of those that
            are trained.
    """

    every_steps: int = Field(20, gt=0)
    trackers: list[str] = ["tensorboard"]
    use_progress_bar: bool = True
    picture_every_steps: int | None = Field(1000, gt=0)
    picture_source: str | None = None
    metrics_every_steps: int | None = Field(200, gt=0)
    metrics_sizes_px: list[Count] | None = None

    @model_validator(mode="after")
    def _check(self) -> "LoggingRecipe":
        sizes = self.metrics_sizes_px
        require(sizes != [], "metrics_sizes_px", sizes, "at least one size, or null")
        return self
