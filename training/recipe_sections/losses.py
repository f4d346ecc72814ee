"""What is compared, and how dense targets are standardized for it."""

from typing import Annotated, Literal

from pydantic import Field

from foundation.fields import OneOf
from training.losses.features import FEATURE_LOSSES
from training.losses.summaries import SUMMARY_LOSSES
from training.recipe_sections.base import RecipeSection


class StandardizationRecipe(RecipeSection):
    """How dense targets are standardized, and when their statistics settle (dispersions too).

    Attributes:
        method: A key of `training.targets.phi_s.STANDARDIZERS`; "none" takes the mean off alone, to compare with.
        calibration_steps: Batches of teacher features looked at before the first step.
        estimation_steps: Steps during which the statistics go on; then they are frozen.
        refit_every_steps: Steps between two refits meanwhile (early on also at powers of two).
    """

    method: Literal["phi_s", "channel", "global", "none"] = "phi_s"
    calibration_steps: int = Field(1, gt=0)
    estimation_steps: int = Field(3000, ge=0)
    refit_every_steps: int = Field(100, gt=0)


class LossRecipe(RecipeSection):
    """Which losses; the entries of teachers and partitions hold the weights.

    Attributes:
        features: A key of `training.losses.features.FEATURE_LOSSES`. An image counts once, as its summary does, however
            little of it student and teacher both see (C-RADIOv4's Eq 1).
        summary: A key of `training.losses.summaries.SUMMARY_LOSSES`.
    """

    features: Annotated[str, OneOf(FEATURE_LOSSES)] = "mse"
    summary: Annotated[str, OneOf(SUMMARY_LOSSES)] = "balanced"


class MesaRecipe(RecipeSection):
    """The student's distance to its moving average on another crop of the same image (C-RADIOv4 2.3.2).

    Attributes:
        weight: Factor of the loss; 0 for none.
        start_step: Step from which it counts; before, the average is not run.
    """

    weight: float = Field(0.0, ge=0)
    start_step: int = Field(0, ge=0)

    def is_due(self, step: int) -> bool:
        """Return whether the loss counts at a step."""
        return self.weight > 0 and step >= self.start_step
