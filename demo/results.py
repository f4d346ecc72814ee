"""Measure a student, its teachers, raw pixels and a random network on every labeled set that packages carry.

Writes a page of tables, by default docs/RESULTS.md, and beside it all numbers as JSON. Features are kept below
`--cache`: a run that was stopped goes on.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from modeling_radio.core.command_line import Command, recorded_command
from modeling_radio.core.files import cache_dir, write_text
from modeling_radio.core.ids import name_of_folder
from modeling_radio.core.machine import find_device
from modeling_radio.core.settings import DeviceOptions, OneOf, hash_of, require
from modeling_radio.core.timing import Clock, describe_run
from modeling_radio.demo.assets import package_named
from modeling_radio.demo.evaluation_data import DemoData
from modeling_radio.demo.images import LABELED_PACKAGES
from modeling_radio.evaluation.data import EvaluationData
from modeling_radio.evaluation.data_tables import TableData
from modeling_radio.evaluation.features import FeatureStore
from modeling_radio.evaluation.models.pretrained import RawPixels, random_network
from modeling_radio.evaluation.models.radio import open_radio
from modeling_radio.evaluation.models.teachers import TeacherFeatures
from modeling_radio.evaluation.settings import PRESETS, DataOptions, TaskSettings
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.registry import TASKS
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.metrics.results import Measurement, Results, Source, build_tables
from modeling_radio.training.recipes.recipe import Recipe, RecipeCommand
from modeling_radio.training.student.provenance import teacher_sources
from modeling_radio.training.teachers.registry import build_teachers, reachable_teachers


TASKS_OF_LABELS = ("knn", "logistic_regression", "image_retrieval")
SHOWN = {
    ("knn", "accuracy"),
    ("logistic_regression", "accuracy"),
    ("logistic_regression", "accuracy, mean features"),
    ("image_retrieval", "mAP"),
    ("segmentation_probe", "mIoU"),
}
"""Columns of the page: task and metric; the JSON file has all."""
DEMO = "demo"
DEMO_TITLE = "photographs and drawings: objects cut out, alone and on photographs (Tux Paint)"
DEMO_REMARK = (
    "Held-out objects are compared with those of the demo's training; the probe learns masks of composed scenes."
)
INTRODUCTION = """# Results

Frozen features, measured on every labeled set in the demo's packages. Higher is better everywhere. None of these sets
has natural photographs by class, and none tells how good a backbone is on your images: run
`radio evaluate CHECKPOINT --data FOLDER` for that. Brackets are 95 % intervals over resampled images. kNN uses 20
neighbors, for Tux Paint 5. Without a train split each image is compared with all others, and the regression predicts
by folds. "Mean features" are the dense features averaged over the image. All models see images of the student's size;
further students see images of their own size.
"""


class ResultsSettings(RecipeCommand, DeviceOptions):
    """Models and sets to measure.

    Attributes:
        student: Folder with config.json and weights, such as that of `radio demo`.
        others: Folders of more students, each at its own size; a folder `final` is named after the one above it.
        output: Page to write; the numbers go beside it, as JSON.
        sets: Labeled sets to measure on.
        max_images: Number of images of each split, by a seeded choice, for a quick look.
        cache: Folder for the sets and the features; by default `results` in the cache folder (`RADIO_CACHE`).
    """

    student: Path = Path("runs/demo/final")
    others: list[Path] = []
    output: Path = Path("docs/RESULTS.md")
    sets: Annotated[list[str], OneOf([DEMO, *LABELED_PACKAGES])] = Field([DEMO, *LABELED_PACKAGES], min_length=1)
    max_images: int | None = Field(None, gt=0)
    cache: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> "ResultsSettings":
        rule = "a page such as RESULTS.md: the numbers go beside it, as .json"
        require(self.output.suffix != ".json", "output", str(self.output), rule)
        return self

    def folder(self) -> Path:
        """Return the folder for the sets and the features."""
        return self.cache or cache_dir() / "results"


COMMAND = Command(
    "radio demo-results",
    __doc__,
    ResultsSettings,
    changes=Recipe,
    examples=("radio demo-results",),
)


def _write(settings: ResultsSettings) -> None:
    transformers_logging.disable_progress_bar()
    results, titles = measure_sets(settings, recorded_command(COMMAND.name, settings))
    results.save(settings.output.with_suffix(".json"))
    write_text(settings.output, page(results, titles))
    print(f"Wrote {settings.output} and {settings.output.with_suffix('.json')}.")


def measure_sets(settings: ResultsSettings, command: str) -> tuple[Results, dict[str, tuple[str, str]]]:
    """Measure all models on all sets.

    Args:
        settings: Models and sets.
        command: Named in the JSON file.

    Returns:
        The results, and title and remark of each set by the name that its measurements have.

    Raises:
        ValueError: If the student is no checkpoint.
        PackageError: If packages cannot be fetched.
    """
    recipe = settings.load_recipe()
    device = find_device(settings.device)
    student = open_radio(settings.student, device=device)
    teachers = build_teachers(reachable_teachers(recipe), student.patch_size)
    others = [open_radio(folder, name=name_of_folder(folder), device=device) for folder in settings.others]
    models: list[FeatureModel] = [RawPixels(student.patch_size, student.size_px, device)]
    models += [random_network(student.model.config, size_px=student.size_px, device=student.device), student, *others]
    models += [
        TeacherFeatures(
            teacher.to(device), patch_size=student.patch_size, size_px=student.size_px, name=f"teacher {name}"
        )
        for name, teacher in teachers.items()
    ]
    names = [model.name for model in models]
    require(
        len(set(names)) == len(names), "others", settings.others, f"folders whose names make rows of their own: {names}"
    )
    store = FeatureStore(settings.folder() / "features", num_workers=2)
    measurements: list[Measurement] = []
    titles, sources, fingerprints = {}, [], {}
    clock = Clock()
    for name in tqdm(settings.sets, desc="sets", unit="set"):
        with clock.phase(name):
            data, title, remark = open_set(name, settings, student.size_px)
            tasks = [*TASKS_OF_LABELS, *(["segmentation_probe"] if "masks" in data.kinds() else [])]
            for model in models:
                has_own_size = model.size_px != student.size_px
                own = open_set(name, settings, model.size_px)[0] if has_own_size else data
                task_settings = TaskSettings(**PRESETS[DEMO]) if name == DEMO else TaskSettings()
                measurements += measure(Evaluation(model, own, task_settings, store), tasks)
        part = data.part("labels")
        titles[name] = (title, f"{remark} {_counts(data)}")
        sources += _sources(name, data)
        fingerprints[name] = part.fingerprint
    fingerprints |= {model.name: hash_of({"model": model.fingerprint()})[:16] for model in models}
    run = {**describe_run(command, clock), "settings": settings.to_dict()}
    datasets = list({source.name: source for source in sources}.values())
    return Results(measurements, teacher_sources(student.model.config, recipe), datasets, run, [], fingerprints), titles


def measure(evaluation: Evaluation, tasks: Sequence[str]) -> list[Measurement]:
    """Return the measurements of some tasks, after one pass over the images."""
    for name in tasks:
        evaluation.expect(TASKS[name].kind, TASKS[name].wanted(evaluation.model))
    return [measurement for name in tasks for measurement in TASKS[name].measure(evaluation)]


def open_set(name: str, settings: ResultsSettings, size_px: int) -> tuple[EvaluationData, str, str]:
    """Return a set, its title and its remark; a set out of packages is written once, below the cache."""
    if name == DEMO:
        return DemoData.load(DEMO, size_px), DEMO_TITLE, DEMO_REMARK
    package, options = LABELED_PACKAGES[name], DataOptions(max_images=settings.max_images)
    return TableData(str(package.written(settings.folder() / "sets" / name)), options), package.title, package.remark


def page(results: Results, titles: dict[str, tuple[str, str]]) -> str:
    """Return the page: title, remark and tables of each set, then the sources."""
    run = results.run
    lines = [INTRODUCTION, f"`{run['command']}`, {run['date']}, {run['machine']}."]
    for name, (title, remark) in titles.items():
        own = [found for found in results.measurements if found.dataset.split()[0] == name]
        shown = [found for found in own if (found.task, found.metric) in SHOWN]
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", remark, ""]
        lines += [table.to_markdown() for table in build_tables(shown)]
    lines += ["", "## Sources", ""]
    lines += [f"- {source.name}: {source.origin}; {source.license}" for source in results.datasets]
    return "\n".join(lines) + "\n"


def _counts(data: EvaluationData) -> str:
    part = data.part("labels")
    stored = "" if part.train is None else f", {len(part.train)} to compare with"
    return f"{len(part.test)} images of {len(part.class_names)} classes{stored}."


def _sources(name: str, data: EvaluationData) -> list[Source]:
    if name == DEMO:
        return data.sources()
    packages = [package_named(each) for each in LABELED_PACKAGES[name].packages]
    return [
        Source(each.name, "evaluation", each.license, f"{each.ecosystem} package {each.name} {each.version}")
        for each in packages
    ]


main = partial(COMMAND.run, _write)


if __name__ == "__main__":
    sys.exit(main())
