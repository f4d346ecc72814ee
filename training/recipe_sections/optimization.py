"""How weights move, and what acts on them while they do."""

from typing import Annotated, Literal

from pydantic import Field

from training.recipe_sections.base import INDECISIVE, Decay, RecipeSection


class OptimizerRecipe(RecipeSection):
    """The optimizer and what guards it.

    Attributes:
        name: A key of `training.distillation.optimizers.registry.OPTIMIZERS`.
        learning_rate: Peak of the schedule.
        weight_decay: For matrices; never for biases, norms, the position table and the prefix tokens.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        fallback_lr_scale: Muon only: learning rate of everything outside of the blocks' matrices, which NAdamW moves,
            as a factor of `learning_rate`.
        clip_norm: Largest gradient norm; None for no clipping.
        trunk_frozen_steps: Steps during which only the adaptors learn; the trunk is not even run backward.
        trunk_warmup_steps: Steps over which the learning rate of a trunk that was frozen rises once it wakes, as a
            factor on the schedule's; None for `schedule.warmup_steps`.
        max_bad_steps: Consecutive steps with a non-finite gradient, each skipped, after which the run gives
            up.
    """

    name: Literal["adamw", "lamb", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    fallback_lr_scale: float = Field(1.0, ge=0)
    clip_norm: float | None = Field(1.0, gt=0)
    trunk_frozen_steps: int = Field(0, ge=0)
    trunk_warmup_steps: int | None = Field(None, ge=0)
    max_bad_steps: Annotated[int, INDECISIVE] = Field(10, gt=0)


class ScheduleRecipe(RecipeSection):
    """Length of the run and the course of the learning rate: linear warm-up, then a cosine.

    Attributes:
        num_steps: Optimizer steps.
        warmup_steps: Steps of the linear rise.
        final_fraction: Learning rate at the end over its peak.
    """

    num_steps: int = Field(10_000, gt=0)
    warmup_steps: int = Field(500, ge=0)
    final_fraction: float = Field(0.0, ge=0, le=1)


class EmaRecipe(RecipeSection):
    """The moving average of the student.

    Attributes:
        decay: Its final decay.
        is_exported: Export the average rather than the student itself.
    """

    decay: float = Field(0.999, ge=0, lt=1)
    is_exported: bool = True


class DampRecipe(RecipeSection):
    """Multiplicative noise on the student's weights in training (C-RADIOv4 2.4).

    Attributes:
        sigma: Standard deviation of the factors around 1; 0 for none.
        is_shared: One draw for all ranks and accumulated parts of a partition's step, so that splitting a batch changes
            nothing; otherwise each draws its own, as published.
    """

    sigma: float = Field(0.0, ge=0)
    is_shared: bool = False


class SpectralRecipe(RecipeSection):
    """Spectral reparametrization of the blocks' linear layers (PHI-S, A.7).

    Attributes:
        is_used: Whether the student is trained so; what is exported is plain in any case.
    """

    is_used: bool = False
