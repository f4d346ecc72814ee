"""One step: losses of each batch against every teacher and the moving average, and their gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from core.machine import sharing_threads
from training.losses.alignment import align_to_teacher
from training.losses.contrastive import SummaryContrasts
from training.losses.features import FEATURE_LOSSES
from training.losses.mesa import mesa_losses
from training.losses.summaries import SUMMARY_LOSSES
from training.losses.weighting import LossTerm, TeacherWeights
from training.recipe import LossRecipe, Recipe, TeacherRecipe
from training.student.intermediate import Tap
from training.student.packing import HeadAnswer, StudentAnswer
from training.targets.examples import Example
from training.targets.statistics import TeacherStatistics
from training.views.plan import Batch


Part = TypeVar("Part")
Losses = dict[str, Tensor]


class ParallelPasses:
    """Runs passes on threads, and adds up their gradients in the order of the parts, whichever ends first.

    Args:
        num_at_once: Passes that run at the same time, each on its share of torch's threads.
    """

    def __init__(self, num_at_once: int) -> None:
        self._pool = sharing_threads(num_at_once, "pass")

    def run(
        self, parts: Sequence[Part], work: Callable[[Part], tuple[Tensor, Losses]], parameters: Sequence[nn.Parameter]
    ) -> Iterator[Losses]:
        """Add the gradients of every part's loss to those of the parameters.

        Args:
            parts: What `work` takes.
            work: Returns what to differentiate, and what to yield.
            parameters: By what; those that a loss does not reach get nothing from it.

        Yields:
            What `work` returned, in the order of the parts.
        """

        def differentiate(part: Part) -> tuple[tuple[Tensor | None, ...], Losses]:
            total, losses = work(part)
            return torch.autograd.grad(total, list(parameters), allow_unused=True), losses

        for gradients, losses in self._pool.map(differentiate, parts):
            _add_gradients(parameters, gradients)
            yield losses


def parallel_passes(recipe: Recipe, accelerator: Accelerator) -> ParallelPasses | None:
    """Return what runs `student.passes_at_once`; None where that is 1, or would change more than the time.

    Ranks that exchange gradients hook into a single backward pass, and noise and dropout draw from torch's one
    generator in the order of the passes. On a GPU passes would only wait for each other.
    """
    is_random = recipe.damp.sigma > 0 or any("dropout" in name for name in recipe.student.config)
    is_alone = accelerator.distributed_type == DistributedType.NO and accelerator.device.type == "cpu"
    num_at_once = recipe.student.passes_at_once
    return ParallelPasses(num_at_once) if num_at_once > 1 and is_alone and not is_random else None


def _add_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    sums, terms = [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            sums.append(parameter.grad)
            terms.append(gradient)
    if sums:
        torch._foreach_add_(sums, terms)


def compare_with_teachers(
    recipe: Recipe,
    statistics: TeacherStatistics,
    weights: TeacherWeights,
    contrasts: SummaryContrasts | None,
    batch: Batch,
    example: Example,
    student: StudentAnswer,
    taps: Sequence[Tap] = (),
) -> dict[str, Tensor]:
    """Return the student's losses by name, `"loss"` being the weighted sum.

    Args:
        recipe: Says which losses, and their factors.
        statistics: Of the teachers.
        weights: What the losses of teachers count by in this step, besides these factors.
        contrasts: What answers are contrasted with; None for no contrastive loss.
        batch: What was planned.
        example: What the teachers answered.
        student: What the student answers.
        taps: Whose answers are among those of the adaptors.
    """
    terms: dict[str, LossTerm] = {}
    for entry in recipe.teachers:
        answer = student.adaptors[entry.name]
        terms |= _named(_head_terms(recipe.loss, statistics, entry, batch, example, answer), entry.name)
        if contrasts is not None and entry.name in contrasts.teachers:
            terms[f"contrastive/{entry.name}"] = _contrastive_term(recipe, contrasts, entry, example, answer)
    entries = {entry.name: entry for entry in recipe.teachers}
    for tap in taps:
        factor = tap.share * recipe.taps.weight_at(batch.step, recipe.schedule.num_steps)
        entry, answer = entries[tap.teacher], student.adaptors[tap.name]
        own = _head_terms(recipe.loss, statistics, entry, batch, example, answer, tap.target)
        faded = {f"tap_{kind}": term._replace(weight=factor * term.weight) for kind, term in own.items()}
        terms |= _named(faded, tap.name)
    total = student.features[0].new_zeros((), dtype=torch.float32)
    for name, weighted in weights.weigh(batch, terms).items():
        total = total + terms[name].weight * weighted
    return {"loss": total, **{name: term.value for name, term in terms.items()}}


def compare_with_average(
    student: Sequence[Tensor],
    average: Sequence[Tensor],
    shifts: Sequence[Tensor],
    extents: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return the MESA loss of a batch, the mean of `mesa_losses` over images; arguments are by groups of images."""
    groups = zip(student, average, shifts, extents or [None] * len(shifts), strict=True)
    return torch.cat([mesa_losses(*each) for each in groups]).mean()


def _named(terms: Mapping[str, LossTerm], name: str) -> dict[str, LossTerm]:
    return {f"{kind}/{name}": term for kind, term in terms.items()}


def _head_terms(
    recipe: LossRecipe,
    statistics: TeacherStatistics,
    entry: TeacherRecipe,
    batch: Batch,
    example: Example,
    answer: HeadAnswer,
    target_of_features: str | None = None,
) -> dict[str, LossTerm]:
    """Return by kind the dense loss of what is said about a teacher and, if it has a summary, the summary loss.

    Features are compared with those of a target on the teacher's way, if one is named.
    """
    target, features = example.targets.get(entry.name), target_of_features or entry.name
    if target is None:
        # Not a teacher of this partition. Its head still gets a gradient, of zero: ranks wait for each other's.
        terms = {"features": _no_term(torch.stack([each.float().mean() for each in answer.features]).sum())}
        if answer.summary is not None:
            terms["summary"] = _no_term(answer.summary.float().mean())
        return terms
    dense = _feature_term(recipe, statistics, features, batch, example, answer)
    terms = {"features": dense._replace(weight=entry.feature_weight)}
    if answer.summary is not None and target.summary is not None:
        terms["summary"] = _summary_term(recipe, statistics, entry, answer.summary, target.summary)
    return terms


def _no_term(answer: Tensor) -> LossTerm:
    return LossTerm(1.0, 0.0 * answer, answer.new_zeros)


def _summary_term(
    recipe: LossRecipe, statistics: TeacherStatistics, entry: TeacherRecipe, ours: Tensor, theirs: Tensor
) -> LossTerm:
    compare, dispersion = SUMMARY_LOSSES[recipe.summary], statistics.dispersion(entry.name).value

    def by_image() -> Tensor:
        return torch.stack([compare(*pair, dispersion) for pair in zip(ours.split(1), theirs.split(1), strict=True)])

    return LossTerm(entry.summary_weight, compare(ours, theirs, dispersion), by_image)


def _contrastive_term(
    recipe: Recipe, contrasts: SummaryContrasts, entry: TeacherRecipe, example: Example, answer: HeadAnswer
) -> LossTerm:
    target = example.targets.get(entry.name)
    if target is None:
        return _no_term(torch.stack([each.float().mean() for each in answer.features]).sum())
    losses = contrasts.losses(entry.name, answer, target)
    weight = recipe.contrastive.weight * entry.summary_weight
    return LossTerm(weight, losses.mean(), lambda: losses)


def _feature_term(
    recipe: LossRecipe,
    statistics: TeacherStatistics,
    name: str,
    batch: Batch,
    example: Example,
    answer: HeadAnswer,
) -> LossTerm:
    compare, target, losses = FEATURE_LOSSES[recipe.features], example.targets[name], []
    none = [None] * len(target.features)
    groups = zip(
        batch.groups, answer.features, target.features, target.shifts or none, example.extents or none, strict=True
    )
    for (shape, _), ours, theirs, shift, extent in groups:
        maps = align_to_teacher(ours, statistics.standardize(name, theirs), shift, shape.grid, extent)
        losses.append(compare(*maps))
    by_image = torch.cat(losses)
    return LossTerm(1.0, by_image.mean(), lambda: by_image)
