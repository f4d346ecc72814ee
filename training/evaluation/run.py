"""All evaluations of one saved checkpoint, beside its baselines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from core.ranks import device_of_process, rank_and_count
from core.settings import hash_of
from core.timing import Clock
from model_cards.results import Measurement, Results
from training.data.sources import public_name
from training.evaluation.data import EvaluationData, check_kind
from training.evaluation.features import FeatureStore
from training.evaluation.models.base import FeatureModel
from training.evaluation.models.opening import open_model
from training.evaluation.models.pretrained import RawPixels, random_vit
from training.evaluation.models.radio import AUTOCAST_TYPES, RadioFeatures, open_radio
from training.evaluation.models.teachers import TeacherFeatures
from training.evaluation.opening import open_data
from training.evaluation.provenance import describe_run, teacher_sources
from training.evaluation.settings import EvaluationSettings
from training.evaluation.tasks.base import Evaluation, Task
from training.evaluation.tasks.registry import TASKS, task_names
from training.figures.page import check_page
from training.recipe import Recipe, RecipeError
from training.teachers.registry import build_teachers


BRIEF_NUMBERS = 3
"""Of a task that are printed at once; our choice, they fit into a line."""


def evaluate(settings: EvaluationSettings, recipe: Recipe) -> Results:
    """Return the measurements of a checkpoint folder and of what it is compared with; see `run_evaluations`."""
    return run_evaluations(settings, recipe)[0]


def run_evaluations(settings: EvaluationSettings, recipe: Recipe) -> tuple[Results, list[Evaluation]]:
    """Run evaluations of a checkpoint folder.

    Ranks that a launcher started share the extraction of features, and all return the same.

    Args:
        settings: Which, of what.
        recipe: Names the teachers, and the data where the settings do not.

    Returns:
        The measurements with their sources; the evaluations, that of the checkpoint first.

    Raises:
        ValueError: If the folder is no checkpoint, is damaged or not finite, `size` does not fit it, the data cannot be
            opened or lacks what a task needs, or `output` holds something else than results.
        PackageError: If data or teachers cannot be fetched.
    """
    source = settings.data or recipe.data.source
    settings = settings.for_source(source)
    check_results_file(settings.output)
    if settings.output is not None and settings.report:
        check_page(settings.output.with_suffix(".html"))
    model = open_radio(
        settings.checkpoint, size_px=settings.size, device=device_of_process(), dtype=AUTOCAST_TYPES[settings.precision]
    )
    data = open_data(source, settings, size_px=model.size_px, seed=settings.random_seed)
    names = task_names(settings.tasks, data.kinds())
    for name in names:
        check_kind(source, TASKS[name].kind, data.kinds())
    store = FeatureStore(settings.cache, batch_size=settings.batch_size, num_workers=settings.num_workers)
    find_teachers = partial(build_references, model, recipe)
    baselines = _baselines(settings, model)
    compared = [each for each in _compared(settings, model) if each.name not in {known.name for known in baselines}]
    models = [*baselines, *compared, model]
    evaluations = [Evaluation(each, data, settings, store, find_teachers=find_teachers) for each in models]
    clock, measurements = Clock() if rank_and_count()[0] == 0 else Clock(report=lambda line: None), []
    for evaluation in evaluations:
        measured = [name for name in names if _is_measured(TASKS[name], evaluation.model, model, compared)]
        for name in measured:
            evaluation.expect(TASKS[name].kind, TASKS[name].wanted(evaluation.model))
        for name in measured:
            with clock.phase(name):
                measured_now = TASKS[name].measure(evaluation)
            clock.report(_brief(evaluation.model.name, measured_now))
            measurements += measured_now
    run = describe_run(_command(settings, names), clock)
    results = Results(
        measurements,
        teacher_sources(model.model.config, recipe),
        data.sources(),
        {**run, "settings": settings.of_tasks()},
        data.remarks(settings.neighbors),
        fingerprints(data, names, models),
    )
    return results, [evaluations[-1], *evaluations[len(baselines) : -1], *evaluations[: len(baselines)]]


def _command(settings: EvaluationSettings, tasks: Sequence[str]) -> str:
    """Return the command without what `run.settings` of the results says."""
    words = ["python", "-m", "training.evaluate", str(settings.checkpoint), "--tasks", ",".join(tasks)]
    if settings.data is not None:  # an address may tell who asks
        words += ["--data", public_name(settings.data).name if "://" in settings.data else settings.data]
    words += ["--compare", ",".join(settings.compare)] if settings.compare else []
    return shlex.join(words)


def _brief(model: str, measurements: Sequence[Measurement]) -> str:
    """Return a line of the first numbers of a task, for who waits for the others."""
    shown = [f"{each.metric} {each.value:.3f}" for each in measurements[:BRIEF_NUMBERS]]
    return f"  {model}: {'; '.join(shown)}{'; ...' if len(measurements) > len(shown) else ''}"


def _is_measured(task: Task, model: FeatureModel, checkpoint: FeatureModel, compared: Sequence[FeatureModel]) -> bool:
    return model is checkpoint or task.of_baselines or (model in compared and task.of_compared(model))


def check_results_file(path: Path | None) -> None:
    """Refuse to write results in place of anything but results, before anything is measured."""
    if path is None or not path.exists():
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
    """Return the recipe's teachers that a model has adaptors for, fetched where they are not here.

    Raises:
        RecipeError: If there are none.
    """
    entries = [entry for entry in recipe.teachers if entry.name in model.adaptor_names]
    if not entries:
        raise RecipeError(
            f"Recipe {recipe.name!r} names none of the checkpoint's adaptors {[*model.adaptor_names]}: give the "
            "--recipe it was trained with."
        )
    teachers = build_teachers(entries, model.patch_size)
    return {
        name: TeacherFeatures(
            teacher.to(model.device), patch_size=model.patch_size, size_px=model.size_px, name=f"teacher {name}"
        )
        for name, teacher in teachers.items()
    }


def fingerprints(data: EvaluationData, tasks: list[str], models: list[FeatureModel]) -> dict[str, str]:
    """Return hashes of the images that the tasks are measured on, and of the models."""
    kinds = dict.fromkeys(TASKS[name].kind for name in tasks)
    images = {f"{kind} of {data.part(kind).name}": data.part(kind).fingerprint for kind in kinds}
    return images | {model.name: hash_of({"model": model.fingerprint()})[:16] for model in models}


def _baselines(settings: EvaluationSettings, model: RadioFeatures) -> list[FeatureModel]:
    built: dict[str, FeatureModel] = {}
    for name in settings.baselines:
        if name == "pixels":
            built[name] = RawPixels(model.patch_size, model.size_px, model.device)
        else:
            built[name] = random_vit(
                model.model.config, size_px=model.size_px, seed=settings.random_seed, device=model.device
            )
    return list(built.values())


def _compared(settings: EvaluationSettings, model: RadioFeatures) -> list[FeatureModel]:
    dtype = AUTOCAST_TYPES[settings.precision]
    names = dict.fromkeys(settings.compare)
    return [open_model(name, beside=model, size_px=settings.size, dtype=dtype) for name in names]
