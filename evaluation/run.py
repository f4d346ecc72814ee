"""Evaluation of a saved checkpoint beside baselines and other models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from modeling_radio.core.command_line import recorded_command
from modeling_radio.core.files import cache_dir, check_writable
from modeling_radio.core.ranks import device_of_process, rank_and_count
from modeling_radio.core.settings import hash_of
from modeling_radio.core.timing import Clock, describe_run
from modeling_radio.evaluation.data import check_kind
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.features import FeatureStore
from modeling_radio.evaluation.models.opening import open_compared
from modeling_radio.evaluation.models.pretrained import RawPixels, random_network
from modeling_radio.evaluation.models.radio import AUTOCAST_TYPES, RadioFeatures, tiles_of
from modeling_radio.evaluation.models.teachers import TeacherFeatures
from modeling_radio.evaluation.settings import EvaluationSettings
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.registry import RETRIEVAL, find_task, task_names
from modeling_radio.figures.page import check_page
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.metrics.results import Measurement, Results
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.student.provenance import teacher_sources
from modeling_radio.training.teachers.registry import build_teachers


BRIEF_NUMBERS = 3
"""Our choice of numbers of a task that are printed at once; they fit into a line."""


def measured_model(settings: EvaluationSettings, recipe: Recipe | None = None) -> RadioFeatures:
    """Return the checkpoint of the settings, with the adaptors of a recipe's teachers where NVIDIA's folder lacks them.

    Raises:
        ValueError: If the folder is no checkpoint, is damaged or not finite, or `size` or `truncate_dim` does not fit
            it.
    """
    dtype = AUTOCAST_TYPES[settings.dtype]
    teachers = [] if recipe is None else [entry.name for entry in recipe.teachers]
    device = device_of_process(settings.device)
    model = RadioFeatures.open(
        settings.checkpoint,
        size_px=settings.size,
        device=device,
        dtype=dtype,
        teachers=teachers,
        tiles=tiles_of(settings),
    )
    return model if settings.truncate_dim is None else model.truncated(settings.truncate_dim)


def find_recipe(settings: EvaluationSettings) -> Recipe | None:
    """Return the recipe that is given, or that of the checkpoint's run if data or a task need one; else None.

    Raises:
        RecipeError: If it is needed and there is none, there are changes of none, or it cannot be used.
    """
    recipe = settings.load_recipe()
    if recipe is not None:
        return recipe
    names = [name for name in settings.tasks or () if name != RETRIEVAL and find_task(name).needs_teachers]
    uses = [f"the teachers of {name}" for name in names] + ["the images without `data`"] * (settings.data is None)
    recipe = settings.load_recipe_of_run() if uses else None
    if recipe is None and uses:
        raise RecipeError(
            f"`recipe` must be given for {' and '.join(uses)}, because `checkpoint` {str(settings.checkpoint)!r} is "
            f"not in the folder of its run: give --recipe{' or --data' if settings.data is None else ''}."
        )
    if recipe is None and settings.changes:
        raise RecipeError(f"`changes` must be left out without a recipe, got {[*settings.changes]}: give --recipe.")
    return recipe


def run_evaluations(
    settings: EvaluationSettings, model: RadioFeatures | None = None
) -> tuple[Results, list[Evaluation]]:
    """Measure a checkpoint, its baselines and the models of `compare`.

    Ranks that a launcher started share the extraction of features, and all return the same.

    Args:
        settings: Settings of the evaluation.
        model: Result of `measured_model` for this checkpoint at any size; None opens it.

    Returns:
        The measurements with their sources; the evaluations, that of the checkpoint first.

    Raises:
        ValueError: If the folder is no checkpoint, is damaged or not finite, `size` does not fit it, the data cannot be
            opened or lack the targets of a task, `output` holds something else than results, or a recipe is needed
            and not found.
        PackageError: If data or teachers cannot be fetched.
    """
    command = recorded_command("radio evaluate", settings, ["checkpoint"])
    recipe = find_recipe(settings)
    source = settings.data
    if source is None:
        assert recipe is not None  # else `find_recipe` refuses
        source = recipe.data.source
    settings = settings.for_source(source)
    check_outputs(settings)
    model = measured_model(settings, recipe) if model is None else model.with_size(settings.size)
    data = open_data(source, settings, size_px=model.size_px, seed=settings.seed)
    names = task_names(settings.tasks, data.kinds())
    for name in names:
        check_kind(source, find_task(name).kind, data.kinds())
    folder = settings.cache or cache_dir() / "evaluation"
    store = FeatureStore(folder, batch_size=settings.batch_size, num_workers=settings.num_workers)
    find_teachers = partial(_find_teachers, model, settings, recipe)
    baselines = _baselines(settings, model)
    opened = [
        open_compared(name, beside=model, size_px=settings.size, dtype=model.dtype)
        for name in dict.fromkeys(settings.compare)
    ]
    compared = [each for each in opened if each.name not in {known.name for known in baselines}]
    models = [*baselines, *compared, model]
    evaluations = [Evaluation(each, data, settings, store, find_teachers=find_teachers) for each in models]
    clock = Clock() if rank_and_count()[0] == 0 else Clock(report=lambda line: None)
    measurements = []
    for evaluation in evaluations:
        own = evaluation.model
        measured = [
            name
            for name in names
            if own is model or find_task(name).of_baselines or (own in compared and find_task(name).of_compared(own))
        ]
        measurements += _measure(evaluation, measured, clock)
    parts = {kind: data.part(kind) for kind in dict.fromkeys(find_task(name).kind for name in names)}
    results = Results(
        measurements,
        Lineage.find(settings.checkpoint.expanduser()).teachers
        if recipe is None
        else teacher_sources(model.model.config, recipe),
        data.sources(),
        {**describe_run(command, clock), "settings": settings.of_tasks()},
        data.remarks(settings.neighbors),
        {f"{kind} of {part.name}": part.fingerprint for kind, part in parts.items()}
        | {each.name: hash_of({"model": each.fingerprint()})[:16] for each in models},
    )
    return results, [evaluations[-1], *evaluations[len(baselines) : -1], *evaluations[: len(baselines)]]


def _measure(evaluation: Evaluation, tasks: list[str], clock: Clock) -> list[Measurement]:
    """Measure one model, and print the first numbers of each task."""
    model, measurements = evaluation.model, []
    for name in tasks:
        evaluation.expect(find_task(name).kind, find_task(name).wanted(model))
    for name in tasks:
        with clock.phase(name):
            found = find_task(name).measure(evaluation)
        shown = "; ".join(f"{each.metric} {each.value:.3f}" for each in found[:BRIEF_NUMBERS])
        clock.report(f"  {model.name}: {shown}{'; ...' if len(found) > BRIEF_NUMBERS else ''}")
        measurements += found
    return measurements


def check_outputs(settings: EvaluationSettings) -> None:
    """Refuse, before anything is measured, outputs that hold something else or cannot be written.

    Raises:
        ValueError: If they hold something else.
        WriteError: If nothing can be written there.
    """
    check_results_file(settings.output)
    if settings.output is not None and settings.report:
        check_page(settings.output.with_suffix(".html"))


def check_results_file(path: Path | None) -> None:
    """Refuse a file, before anything is measured, that holds something else than results or cannot be written.

    Raises:
        ValueError: If it holds something else.
        WriteError: If nothing can be written there.
    """
    if path is None:
        return
    check_writable(path)
    if not path.exists():
        return
    try:
        if path.is_dir():
            raise ValueError("it is a folder")
        Results.load(path)
    except ValueError as error:
        raise ValueError(
            f"`output` must be a new file or earlier results, got {str(path)!r}, which holds something else ({error}). "
            "Name another file."
        ) from error


def build_references(model: RadioFeatures, recipe: Recipe) -> Mapping[str, FeatureModel]:
    """Return the recipe's teachers that a model has adaptors for, fetched if necessary.

    Raises:
        RecipeError: If the recipe has no teacher of the checkpoint's adaptors.
    """
    entries = [entry for entry in recipe.teachers if entry.name in model.adaptor_names]
    if not entries:
        raise RecipeError(
            f"Recipe {recipe.name!r} has no teacher of the checkpoint's adaptors {[*model.adaptor_names]}: give the "
            "--recipe it was trained with."
        )
    teachers = build_teachers(entries, model.patch_size)
    return {
        name: TeacherFeatures(
            teacher.to(model.device), patch_size=model.patch_size, size_px=model.size_px, name=f"teacher {name}"
        )
        for name, teacher in teachers.items()
    }


def _find_teachers(
    model: RadioFeatures, settings: EvaluationSettings, recipe: Recipe | None
) -> Mapping[str, FeatureModel]:
    """Return the teachers of a recipe, or of that of the checkpoint's run; none if there is no recipe."""
    found = recipe or settings.load_recipe_of_run()
    return {} if found is None else build_references(model, found)


def _baselines(settings: EvaluationSettings, model: RadioFeatures) -> list[FeatureModel]:
    size, device = model.size_px, model.device
    return [
        RawPixels(model.patch_size, size, device)
        if name == "pixels"
        else random_network(model.model.config, size_px=size, seed=settings.seed, device=device)
        for name in dict.fromkeys(settings.baselines)
    ]
