"""The losses of one batch: the student against every teacher and against its moving average.

`batch_losses` is a pure function of a learner and a batch; `trainer.py` has the loop around it. The order of its
lines is the order of C-RADIOv4's report: forward pass, a dense and a summary loss for each teacher's head, their
weighted sum, and MESA. Hooks add further losses and weights (`hooks.py`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from modeling_radio.training.distillation.learner import Learner
from modeling_radio.training.losses.alignment import AlignedMaps, Alignment
from modeling_radio.training.losses.features import feature_loss
from modeling_radio.training.losses.mesa import mesa_losses
from modeling_radio.training.losses.summaries import summary_loss
from modeling_radio.training.losses.terms import LossTerm, head_of, zero_term
from modeling_radio.training.recipes.recipe import Recipe, TeacherRecipe
from modeling_radio.training.student.foreign import global_window
from modeling_radio.training.student.navit import answering, cross_attention_heads
from modeling_radio.training.student.packing import StudentOutput, forward_groups, token_counts
from modeling_radio.training.targets.examples import Example, Target
from modeling_radio.training.views.plan import PlannedBatch


T = TypeVar("T")


def batch_losses(learner: Learner, batch: PlannedBatch, example: Example) -> dict[str, Tensor]:
    """Return the losses of a batch by name; `"loss"` is their weighted sum, a differentiable scalar.

    Args:
        learner: Student, moving average, statistics of the teachers and weights of the losses.
        batch: The planned images: their partition, groups of one shape, window and random numbers.
        example: The images as the student gets them, and the teachers' outputs for them.
    """
    recipe = learner.recipe
    output = student_output(learner, batch, example)
    losses_of = partial(_head_terms, learner, example, output)
    terms: dict[str, LossTerm] = {}
    for entry in recipe.teachers:
        terms |= {f"{kind}/{entry.name}": term for kind, term in losses_of(entry.name, entry.name).items()}
    for hook in learner.hooks.values():
        _add(terms, hook.terms(batch, example, output, losses_of))
    terms = _in_order(terms, recipe)
    rescaled: dict[str, Tensor] = {}
    for hook in learner.hooks.values():
        _add(rescaled, hook.weigh(batch, terms), known=terms)
    total = output.backbone[0].new_zeros((), dtype=torch.float32)
    for name, term in terms.items():
        total = total + term.weight * rescaled.get(name, term.value)
    losses = {"loss": total, **{name: term.value for name, term in terms.items()}}
    if example.ema_pixels is not None and example.ema_alignments is not None:
        average = ema_features(learner, example.ema_pixels)
        losses["mesa"] = mesa_loss(output.backbone, average, example.ema_alignments)
        losses["loss"] = losses["loss"] + recipe.mesa.weight * losses["mesa"]
    return losses


def _add(found: dict[str, T], more: Mapping[str, T], known: Collection[str] | None = None) -> None:
    """Add what a hook returned; two hooks may not speak of one loss."""
    for name in more:
        if name in found or name == "loss" or (known is not None and name not in known):
            raise ValueError(f"`hooks`: a hook returned {name!r}, which is no name of a loss of its own.")
    found.update(more)


def student_output(learner: Learner, batch: PlannedBatch, example: Example) -> StudentOutput:
    """Return the student's output for a batch: features of the backbone and of all heads, by groups of one shape."""
    options: dict[str, Any] = {"window_size": batch.vitdet_window or global_window(learner.model.config)}
    if not learner.model.config.is_foreign:  # whose dropout draws from torch's generator, which the trainer seeds
        draws = batch.uniform("student", learner.model.num_draws)
        options["draws"] = draws.to(learner.device, non_blocking=True)
    counts = token_counts(learner.recipe, learner.model.config, batch, *example.pixel_values[0].shape[-2:])
    if counts is not None:
        options["num_tokens"] = counts
    with (
        learner.accelerator.autocast(),  # Accelerate adds it under DDP but not under FSDP
        answering(learner.model.config, batch, example.targets) as grids,
    ):
        options["head_grids"] = grids
        return forward_groups(learner.student, example.pixel_values, learner.model.patch_size, **options)


@torch.no_grad()
def ema_features(learner: Learner, groups: Sequence[Tensor]) -> list[Tensor]:
    """Return the backbone's features of the moving average, with global attention and no stochastic layers."""
    window = global_window(learner.model.config)
    with learner.accelerator.autocast():
        return forward_groups(
            learner.ema.module, groups, learner.model.patch_size, window_size=window, adaptor_names=[]
        ).backbone


def mesa_loss(student: Sequence[Tensor], average: Sequence[Tensor], alignments: Sequence[Alignment]) -> Tensor:
    """Return the MESA loss of a batch, the mean of `mesa_losses` over images; arguments are by groups of images."""
    groups = zip(student, average, alignments, strict=True)
    return torch.cat([mesa_losses(*each) for each in groups]).mean()


def _in_order(terms: Mapping[str, LossTerm], recipe: Recipe) -> dict[str, LossTerm]:
    """Return losses in the order in which they are added: by teacher, then those that are of no teacher's own head."""
    places = {entry.name: place for place, entry in enumerate(recipe.teachers)}
    return dict(sorted(terms.items(), key=lambda named: places.get(head_of(named[0]), len(places))))


def _head_terms(
    learner: Learner, example: Example, output: StudentOutput, teacher: str, head: str
) -> dict[str, LossTerm]:
    """Return `"features"`, the dense loss of a head, and `"summary"`, if head and teacher have a summary.

    Args:
        learner: The recipe's factors, and the statistics of the teachers.
        example: The teachers' outputs for the images.
        output: The student's.
        teacher: Name of the teacher.
        head: Name of the teacher's adaptor, or of another head of the student.
    """
    (entry,) = [entry for entry in learner.recipe.teachers if entry.name == teacher]
    summary, outputs = output.summaries[head], example.targets.get(teacher)
    if outputs is None:
        # Not a teacher of these images: a loss of zero, or DDP would wait for the gradients of an unused head.
        terms = {"features": zero_term(output.features[head], "features")}
        if summary is not None:
            terms["summary"] = zero_term([summary], "summary")
        return terms
    has_cells = head in cross_attention_heads(learner.model.config)
    align = Alignment.compare_cells if has_cells else Alignment.apply
    dense = _feature_term(learner, teacher, outputs, output.features[head], align)
    terms = {"features": dense._replace(weight=entry.feature_weight)}
    if summary is not None and outputs.summary is not None:
        terms["summary"] = _summary_term(learner, entry, summary, outputs.summary, outputs)
    return terms


def _feature_term(
    learner: Learner,
    name: str,
    target: Target,
    maps: Sequence[Tensor],
    align: Callable[[Alignment, Tensor, Tensor], AlignedMaps],
) -> LossTerm:
    compare = feature_loss(learner.recipe.loss.features)
    if target.images is not None:
        maps = [maps[number].index_select(0, places) for number, places in target.images.groups]
    groups = zip(maps, target.features, target.alignments, strict=True)
    by_image = torch.cat(
        [compare(*align(alignment, ours, learner.statistics.standardize(name, own))) for ours, own, alignment in groups]
    )
    return LossTerm(1.0, _of_batch(by_image.mean(), target), "features")


def _summary_term(learner: Learner, entry: TeacherRecipe, ours: Tensor, theirs: Tensor, target: Target) -> LossTerm:
    compare = summary_loss(learner.recipe.loss.summary)
    if target.images is not None:
        ours = ours.index_select(0, target.images.places)
    loss = compare(ours, theirs, learner.statistics.dispersion(entry.name).value)
    return LossTerm(entry.summary_weight, _of_batch(loss, target), "summary")


def _of_batch(loss: Tensor, target: Target) -> Tensor:
    """Return the share of a teacher's mean loss over its own images in the mean over the batch."""
    return loss if target.images is None else loss * target.images.weight
