"""What is saved and shown of a run."""

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


class LoggingRecipe(RecipeSection):
    """What can be watched. Not part of what a resumed run must have in common.

    Attributes:
        every_steps: Steps between two records.
        trackers: Names of Accelerate's trackers, for example `[tensorboard]`.
        use_progress_bar: Show a progress bar on the terminal.
        picture_every_steps: Steps between two pictures of held-out images; None draws none.
        picture_source: Where these images come from: "demo" or "demo-pypi", or a folder of images, whose held-out part
            is shown; None for `data.source`, if it is one of these.
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
