"""The hooks of a run, in the order of calls: what a step does beyond the dense and summary loss of each teacher.

A hook that a recipe does not ask for is not in the list. `hooks/base.py` has their protocol.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from modeling_radio import RadioModel
from modeling_radio.core.imports import import_object
from modeling_radio.core.ranks import sum_over_ranks
from modeling_radio.training.auxiliary.heads import build_heads
from modeling_radio.training.balancing.contrastive import build_contrastive
from modeling_radio.training.balancing.weighting import build_weights
from modeling_radio.training.distillation.bad_steps import BadSteps
from modeling_radio.training.distillation.monitoring import LossesBySize, sizes_of
from modeling_radio.training.distillation.parts import RunParts
from modeling_radio.training.hooks.base import StepHook
from modeling_radio.training.hooks.student import RunningStatistics, SpectralNorms, Standardization
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.student.ema import running_statistics
from modeling_radio.training.teachers.outputs import TeacherShape


def build_options(
    recipe: Recipe, teachers: Mapping[str, TeacherShape], student: RadioModel, accelerator: Accelerator
) -> dict[str, StepHook]:
    """Return the hooks that change the objective, by the names that their states have in checkpoints.

    They are built before the optimizer, which trains the heads of some.

    Args:
        recipe: Asks for them.
        teachers: By name.
        student: Before it is wrapped for several ranks.
        accelerator: Accelerator of this rank.

    Raises:
        RecipeError: If one does not fit the teachers or the student, or is no `StepHook`.
    """
    heads = build_heads(recipe, student)
    if heads is not None:
        accelerator.print(heads.describe(), flush=True)
    hooks: dict[str, StepHook | None] = {
        "balancing": build_weights(recipe, teachers, accelerator.device),
        "contrasts": build_contrastive(recipe, teachers, accelerator.device),
        "taps": heads,
        **_own_hooks(recipe, student, accelerator.device),
    }
    return _present(hooks)


def build_hooks(parts: RunParts, folder: Path) -> dict[str, StepHook]:
    """Return all hooks of a run, in their order.

    Args:
        parts: The run. Its hooks are those of `build_options`.
        folder: Gets files about skipped steps.
    """
    recipe, model, accelerator = parts.recipe, parts.model, parts.accelerator

    def further_linears(teacher: str) -> list[nn.Linear]:
        return [linear for hook in parts.hooks.values() for linear in hook.last_dense_linears(teacher)]

    has_batch_norms, has_sizes = len(running_statistics(model)) > 0, len(sizes_of(recipe.partitions)) > 1
    summed = sum_over_ranks if accelerator.num_processes > 1 else None
    hooks: dict[str, StepHook | None] = {
        "spectral": SpectralNorms(model) if recipe.spectral.is_used else None,
        "statistics": Standardization(parts.statistics, [model, parts.average], parts.optimizer, further_linears),
        **parts.hooks,
        "batch_norms": RunningStatistics(model, summed) if has_batch_norms else None,
        "losses_by_size": LossesBySize(recipe.partitions, accelerator.device) if has_sizes else None,
        "throughput": parts.monitors.throughput,
        "bad_steps": BadSteps(folder, recipe, accelerator, parts.skipped),  # the last one: it may end the run
    }
    return _present(hooks)


def extended(student: nn.Module, hooks: Mapping[str, StepHook]) -> nn.Module:
    """Return the module that is trained: the student with the further heads of hooks.

    Raises:
        RecipeError: If a hook has parameters that no optimizer would train, or adds some that no checkpoint would hold.
    """
    held = [*student.parameters()]
    for hook in hooks.values():
        student = hook.extend(student)
        held += hook.parameters() if isinstance(hook, nn.Module) else []
    trained = {id(each): name for name, each in student.named_parameters()}
    lost = sorted(set(trained.values()) - {trained.get(id(each)) for each in held})
    if lost:
        raise RecipeError(
            f"`hooks`: {lost[0]!r} is trained, but in no checkpoint: the hook must be a `torch.nn.Module` that holds "
            "the heads that it adds in `extend`."
        )
    for name, hook in hooks.items():
        parameters = hook.parameters() if isinstance(hook, nn.Module) else ()
        if any(each.requires_grad and id(each) not in trained for each in parameters):
            raise RecipeError(
                f"`hooks`: {name!r} has parameters that nothing trains. Return a module with them from `extend`, or "
                "make them buffers."
            )
    return student


def states_of(hooks: Mapping[str, StepHook]) -> dict[str, nn.Module]:
    """Return by name the hooks that have a state."""
    return {name: hook for name, hook in hooks.items() if isinstance(hook, nn.Module) and hook.state_dict()}


def _own_hooks(recipe: Recipe, student: RadioModel, device: torch.device) -> dict[str, StepHook]:
    found: dict[str, StepHook] = {}
    for name, path in recipe.own_hooks().items():
        build = import_object(path, "hooks", error=RecipeError)
        if not (isinstance(build, type) and issubclass(build, StepHook)):
            raise RecipeError(f"`hooks` must name subclasses of `StepHook`, got {path!r}, a {type(build).__name__}.")
        hook = cast(Callable[[Recipe, RadioModel], StepHook], build)(recipe, student)
        if isinstance(hook, nn.Module):
            hook.to(device)
        found[f"hook_{name}"] = hook
    return found


def _present(hooks: Mapping[str, StepHook | None]) -> dict[str, StepHook]:
    return {name: hook for name, hook in hooks.items() if hook is not None}
