"""Running statistics of all teachers: they standardize dense targets, and summary losses are divided by dispersions."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from modeling_radio.core.ranks import sum_over_ranks
from modeling_radio.training.losses.summaries import angle_between
from modeling_radio.training.recipes.recipe import RecipeError, StandardizationRecipe
from modeling_radio.training.targets.examples import Target
from modeling_radio.training.targets.phi_s import STANDARDIZERS, AffineMap, FeatureStandardizer, PhiS
from modeling_radio.training.teachers.outputs import TeacherShape


MIN_DISPERSION = 1e-8
"""Floor of the divisor, as in NVIDIA's TAO toolkit (Apache-2.0)."""
REFIT_EVERY_STEPS = 100
"""Steps between two refits while statistics move, as in TAO; early on they are also at powers of two."""


class SummaryDispersion(nn.Module):
    """Running `Disp = E[angle(y, mean direction)^2]` of one teacher's summaries, in rad^2.

    Angles of a batch are to the mean of all summaries up to and including it. State is in float64 buffers.

    Args:
        num_channels: Width C of the teacher's summary.

    References:
        C-RADIOv4 tech report, Eq 5 and 6, https://arxiv.org/abs/2601.17237
    """

    count: Tensor
    total: Tensor
    squared_angle_total: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(num_channels, dtype=torch.float64))
        self.register_buffer("squared_angle_total", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, summary: Tensor) -> None:
        """Add a batch of teacher summaries of all ranks together; a non-finite batch is left out.

        Args:
            summary: `(batch, C)`, this rank's part.
        """
        summary = summary.double()
        moments = sum_over_ranks(torch.cat([summary.new_full((1,), len(summary)), summary.sum(0)]))
        is_finite = torch.isfinite(moments).all()
        self.count += torch.where(is_finite, moments[0], 0.0)
        self.total += torch.where(is_finite, moments[1:], 0.0)
        squared_angles = angle_between(summary, self.total.expand_as(summary)).square().sum()
        self.squared_angle_total += torch.where(is_finite, sum_over_ranks(squared_angles), 0.0)

    @property
    def value(self) -> Tensor:
        """The dispersion so far in rad^2, a float64 scalar; its floor before the first update."""
        return (self.squared_angle_total / self.count.clamp(min=1)).clamp(min=MIN_DISPERSION)


class TeacherStatistics(nn.Module):
    """A `FeatureStandardizer` for each teacher, and a `SummaryDispersion` for each that has a summary.

    After the recipe's `estimation_steps` nothing moves. A step's targets are standardized with the statistics from
    before the step, so that accumulation and the number of ranks do not matter.

    Args:
        recipe: The method of standardization, and the number of steps that estimate the statistics.
        teachers: By name.

    Raises:
        RecipeError: If the method is unknown.
    """

    def __init__(self, recipe: StandardizationRecipe, teachers: Mapping[str, TeacherShape]) -> None:
        super().__init__()
        self.recipe = recipe
        build = STANDARDIZERS[recipe.method]
        self.features = nn.ModuleDict({name: build(teacher.feature_dim) for name, teacher in teachers.items()})
        self.summaries = nn.ModuleDict(
            {
                name: SummaryDispersion(teacher.summary_dim)
                for name, teacher in teachers.items()
                if teacher.summary_dim is not None
            }
        )

        self._new_summaries: dict[str, list[Tensor]] = {name: [] for name in self.summaries}

    def begin_step(self, step: int) -> dict[str, AffineMap]:
        """Refit the maps if this step is due, and freeze them once the estimation is over.

        Returns:
            By teacher the map that moved its standardized features; empty without a refit. Heads that predict them
            must follow.
        """
        if step < self.recipe.estimation_steps:
            return self.refit() if step and self._is_refit_due(step) else {}
        if self._is_frozen:
            return {}
        changes = self.refit()
        for standardizer in self.standardizers().values():
            standardizer.freeze()
        return changes

    def update(self, targets: Mapping[str, Target]) -> None:
        """Add the teachers' outputs for a part of a step, unless frozen."""
        if self._is_frozen:
            return
        for name, target in targets.items():
            tokens = torch.cat([features.movedim(1, 0).flatten(1) for features in target.features], dim=1)
            shown = (
                None if target.shown is None else torch.cat([each.flatten() for each in target.shown])[None, :, None]
            )
            self.standardizers()[name].update(tokens[None, :, :, None], shown)  # in one call: moments take memory
            if target.summary is not None:
                self._new_summaries[name].append(target.summary)

    def end_step(self) -> None:
        """Add the updates of all ranks since the last call, unless frozen; angles are to a mean that includes them."""
        if self._is_frozen:
            return
        for standardizer in self.standardizers().values():
            standardizer.end_step()
        for name, dispersion in self._dispersions().items():
            none = dispersion.total.new_zeros(0, len(dispersion.total))
            dispersion.update(torch.cat([none, *self._new_summaries[name]]))
            self._new_summaries[name].clear()

    def refit(self) -> dict[str, AffineMap]:
        """Recompute all maps; return by teacher the map that moved its standardized features.

        Raises:
            RecipeError: If a teacher has returned nothing finite yet.
        """
        return {name: _refit(name, standardizer) for name, standardizer in self.standardizers().items()}

    def standardize(self, name: str, features: Tensor) -> Tensor:
        """Return standardized features of a teacher."""
        return self.standardizers()[name].standardize(features)

    def dispersion(self, name: str) -> SummaryDispersion:
        """Return the dispersion of a teacher's summaries."""
        return self._dispersions()[name]

    def standardizers(self) -> dict[str, FeatureStandardizer]:
        """Return the standardizers by teacher name."""
        return cast(dict[str, FeatureStandardizer], dict(self.features.items()))

    def scalars(self) -> dict[str, float]:
        """Return scalars for the log: PHI-S scales and dispersions."""
        scales = {f"phi_s_scale/{n}": s.scale for n, s in self.features.items() if isinstance(s, PhiS)}
        return scales | {f"dispersion/{name}": float(d.value) for name, d in self._dispersions().items()}

    def _dispersions(self) -> dict[str, SummaryDispersion]:
        return cast(dict[str, SummaryDispersion], dict(self.summaries.items()))

    @property
    def _is_frozen(self) -> bool:
        return not any(standardizer.is_moving for standardizer in self.standardizers().values())

    def _is_refit_due(self, step: int) -> bool:
        is_power_of_two = step & (step - 1) == 0
        return step % REFIT_EVERY_STEPS == 0 or (is_power_of_two and step < REFIT_EVERY_STEPS)


def _refit(name: str, standardizer: FeatureStandardizer) -> AffineMap:
    try:
        return standardizer.refit()
    except ValueError as error:
        raise RecipeError(
            f"No output of teacher {name!r} was finite: leave it out, or raise `standardization.calibration_steps` "
            "if only a few images cause this."
        ) from error
