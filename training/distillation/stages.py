"""Runs a recipe: its stages one after the other, each starting from the exported weights of the one before."""

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from modeling_radio.core.files import remove_partial, sole_run, write_file, write_folder
from modeling_radio.core.interruption import warn_of_launcher_timeout
from modeling_radio.core.ranks import dead_ranks_named, on_first_rank
from modeling_radio.training.distillation.checkpoints import check_allowed_changes, check_export
from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.recipes.recipe import RECIPE_FILE, Recipe, RecipeError, save_recipe, stage_recipes
from modeling_radio.training.student.build import check_student_views
from modeling_radio.training.student.sharding import build_accelerator


def run_recipe(
    recipe: Recipe,
    output: Path | None = None,
    *,
    is_restart: bool = False,
    stop_at: int | None = None,
    deadline: float | None = None,
    allowed_changes: Sequence[str] = (),
    device: str | None = None,
) -> Path | None:
    """Run a recipe, stage by stage if it has stages, from wherever an earlier session stopped.

    Args:
        recipe: The recipe.
        output: Folder of the run; `runs/NAME` by default. With stages, each is a run of its own in `stages/STAGE`.
        is_restart: Refuse a folder that is not empty instead of resuming from it.
        stop_at: End the session with a checkpoint after this many steps, counted over all stages.
        deadline: Second of `time.monotonic` after which the session ends with a checkpoint; None for no limit.
        allowed_changes: Settings, or sections, in which the recipe may differ from that of the checkpoints.
        device: See `build_accelerator`.

    Returns:
        The exported folder `final`, that of the last stage, or None if the run stopped before its end.

    Raises:
        RecipeError: If the recipe names something unknown, or does not fit the output folder.
        UserError: If another run is at work in that folder, none of its checkpoints is intact, or another process of
            this run has ended.
        Interrupted: After SIGINT, SIGTERM or SIGUSR1, once the state is saved; `OutOfTime` after the deadline.
        TrainingDivergedError: After too many non-finite steps in a row, or if most steps of the run were such.
    """
    output = Path("runs") / recipe.name if output is None else output
    if is_restart and output.exists() and any(output.iterdir()):
        raise RecipeError(f"Output {str(output)!r} is not empty: give another --output to start anew.")
    stages = stage_recipes(recipe)
    for stage in stages or [recipe]:
        check_student_views(stage)  # before the folder is made
    check_allowed_changes(allowed_changes, stages or [recipe])
    # The ranks must find each other before one of them locks the folder for all.
    if build_accelerator(recipe, output, device).is_main_process:
        warn_of_launcher_timeout()
    distiller = functools.partial(Distiller, deadline=deadline, allowed_changes=allowed_changes, device=device)
    with dead_ranks_named(), sole_run(output, "radio distill"):
        if stages:
            return _run_all(recipe, stages, output, stop_at, distiller)
        return distiller(recipe, output).run(stop_at)


def _run_all(
    recipe: Recipe, stages: list[Recipe], output: Path, stop_at: int | None, distiller: Callable[..., Distiller]
) -> Path | None:
    folders = [output / "stages" / stage.name for stage in stages]
    sources = [None, *(folder / "final" for folder in folders)]
    # All are built now, so that a folder that does not fit a stage is refused before the first one runs.
    distillers = [distiller(*arguments) for arguments in zip(stages, folders, sources, strict=False)]
    is_main_process = distillers[0].accelerator.is_main_process
    if all(each.resumed_from is None for each in distillers):
        on_first_rank(lambda: check_export(output, recipe))
    if is_main_process:
        remove_partial(output)
        write_file(output / RECIPE_FILE, lambda path: save_recipe(recipe, path))
    if not _run_stages(distillers, stop_at):
        return None
    if is_main_process:
        write_folder(
            output / "final", lambda folder: shutil.copytree(folders[-1] / "final", folder, dirs_exist_ok=True)
        )
    return output / "final"


def _run_stages(distillers: list[Distiller], stop_at: int | None) -> bool:
    """Run the stages that are not finished yet, and the last one, which exports again; return whether all are."""
    num_stages, num_steps = len(distillers), 0
    while distillers:
        distiller = distillers.pop(0)  # so that its networks are freed before the next stage's are built
        if stop_at is not None and stop_at <= num_steps:
            return False
        if not (distillers and distiller.is_finished):
            number, name = num_stages - len(distillers), distiller.recipe.name
            distiller.accelerator.print(f"Stage {number} of {num_stages}: {name}", flush=True)
            if distiller.run(None if stop_at is None else stop_at - num_steps) is None:
                return False
        num_steps += distiller.recipe.schedule.num_steps
    return True
