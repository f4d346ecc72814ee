"""Compare recipes over seeds: `python -m training.compare demo demo_full --seeds 0,1,2`.

Distils each recipe with each seed on the demo's data, measures the students and writes a table of means and deviations,
`results.json` and `resolution_consistency.png` below `--output`. A run that is done is not repeated; one that was
stopped goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from foundation.command_line import Command
from foundation.settings import Settings
from foundation.timing import Clock
from model_cards.results import Measurement, Results, build_tables
from modeling_radio import RadioModel
from training.distillation.saving.checkpoints import check_same_recipe
from training.distillation.stages import run_recipe
from training.evaluation.features import Wanted
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.provenance import describe_run
from training.evaluation.students import StudentEvaluation
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.fidelity import fidelity
from training.evaluation.tasks.registry import TASKS
from training.pictures.curves import draw_resolution_consistency
from training.recipe import Recipe, RecipeError, load_recipe
from training.student.build import build_student
from training.student.precision import in_faster_precision
from training.teachers.registry import reachable_teachers


SIZES_PX = (96, 128, 192, 256, 384, 512)
"""At which resolution consistency is measured, as far as the students go: the demo's training and up to four times."""
MEAN_OF = "all adaptors"
EQUIVARIANCE_TASKS = ("resolution_consistency", "fixed_pattern", "shift_error")


def compare(recipes: Sequence[Recipe], seeds: Sequence[int], output: Path, command: str) -> Results:
    """Distil and measure every recipe with every seed; see the module's text for what is written.

    Args:
        recipes: With different names and the same data, so that all are measured on the same images.
        seeds: One run each per recipe.
        output: Folder for everything; each run has a subfolder `RECIPE/seed-N`.
        command: For the results file.

    Returns:
        All measurements, named after the recipes.

    Raises:
        RecipeError: If the recipes do not share data and teachers, or one cannot be used or is not that of its folder.
        Interrupted: After Ctrl-C in training; the same command goes on.
    """
    _check_comparable(recipes)
    clock = Clock()
    with clock.phase("references"):
        evaluation = StudentEvaluation.load(recipes[0])
        sizes_px = common_sizes(recipes, evaluation)
    measurements: list[Measurement] = []
    runs = [(recipe, seed) for seed in seeds for recipe in recipes]
    for recipe, seed in tqdm(runs, desc="runs", unit="run"):
        folder = output / recipe.name / f"seed-{seed}"
        with clock.phase(recipe.name):
            measurements += run_and_measure(evaluation, recipe.replace(seed=seed), folder, sizes_px)
    results = Results(measurements, run=describe_run(command, clock.seconds), remarks=evaluation.data.remarks())
    results.save(output / "results.json")
    draw_resolution_consistency(measurements, max(sizes_px), output / "resolution_consistency.png")
    return results


def common_sizes(recipes: Sequence[Recipe], evaluation: StudentEvaluation) -> list[int]:
    """Return those of `SIZES_PX` that all students take.

    Raises:
        RecipeError: If fewer than two are left.
    """
    largest = min(build_student(recipe, evaluation.teachers).max_resolution for recipe in recipes)
    sizes = [size for size in SIZES_PX if size <= largest]
    if len(sizes) < 2:
        raise RecipeError(
            f"`student.config.max_img_size` must be at least {SIZES_PX[1]}, so that resolutions can be compared; "
            f"the students take up to {largest} px."
        )
    return sizes


def run_and_measure(
    evaluation: StudentEvaluation, recipe: Recipe, folder: Path, sizes_px: Sequence[int]
) -> list[Measurement]:
    """Distil one student and measure it, or read what an earlier session measured.

    Raises:
        RecipeError: If the earlier session's recipe was another.
    """
    measured = folder / "measured.json"
    if measured.exists():
        check_same_recipe(folder, load_recipe(str(folder / "recipe.yaml")).to_dict(), recipe)
        return Results.load(measured).measurements
    checkpoint = run_recipe(recipe, folder)
    assert checkpoint is not None  # only a run that was told to stop early has none
    model = RadioModel.from_pretrained(checkpoint).eval()
    measurements = measure(evaluation, model, recipe.name, recipe.seed, sizes_px)
    Results(measurements).save(measured)
    return measurements


def measure(
    evaluation: StudentEvaluation, model: RadioModel, name: str, seed: int, sizes_px: Sequence[int]
) -> list[Measurement]:
    """Measure a student's backbone, the mean fidelity of its adaptors, and what resolutions and shifts do to it."""
    settings = evaluation.settings.replace(consistency_sizes_px=list(sizes_px))
    student = evaluation.of(RadioFeatures(model, name=name, size_px=evaluation.size_px), seed, settings)
    student.expect("images", Wanted(dense=True, adaptors=frozenset(evaluation.teachers)))
    return [
        *evaluation.measure_backbone(student),
        *_mean_fidelity(student),
        *(measurement for task in EQUIVARIANCE_TASKS for measurement in TASKS[task].measure(student)),
    ]


def _mean_fidelity(evaluation: Evaluation) -> list[Measurement]:
    """Return each fidelity metric averaged over the adaptors."""
    values: dict[str, list[Tensor]] = {}
    for teacher in evaluation.teachers:
        for metric, scores in fidelity(evaluation, teacher).items():
            values.setdefault(metric, []).append(scores)
    return [
        evaluation.mean("adaptor_fidelity", f"{metric}, {MEAN_OF}", torch.stack(several).mean(0), "images")
        for metric, several in values.items()
    ]


def _check_comparable(recipes: Sequence[Recipe]) -> None:
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise RecipeError(f"`recipes` must have different names, got {names}.")
    first = recipes[0]
    for recipe in recipes[1:]:
        for section, is_shared in (
            ("data", recipe.data == first.data),
            ("teachers", recipe.teachers == first.teachers),
        ):
            if not is_shared:
                raise RecipeError(
                    f"`{section}` of recipe {recipe.name!r} must equal that of {first.name!r}, "
                    "or the two are not measured alike."
                )


class CompareSettings(Settings):
    """What shall be compared.

    Attributes:
        recipes: Names of recipes, or files of your own that end in .yaml.
        changes: Changes of every recipe.
        seeds: One run of each recipe for each.
        output: Folder for everything.
    """

    recipes: list[str]
    changes: list[str] = []
    seeds: list[int] = [0, 1, 2]
    output: Path = Path("runs/compare")


COMMAND = Command(
    "training.compare",
    "Distil recipes that share data and teachers with several seeds, and compare the students.",
    CompareSettings,
    positionals=("recipes",),
    changes=Recipe,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = " ".join(["python -m training.compare", *arguments])
    return COMMAND.run(lambda settings: _compare(settings, command), arguments)


def _compare(settings: CompareSettings, command: str) -> None:
    transformers_logging.disable_progress_bar()  # models load in no time
    recipes = [in_faster_precision(load_recipe(name, settings.changes)) for name in settings.recipes]
    recipes = [recipe.replace(teachers=reachable_teachers(recipe)) for recipe in recipes]
    results = compare(recipes, settings.seeds, settings.output, command)
    print(*(f"\n{table.to_markdown()}" for table in build_tables(results.measurements)), sep="\n")
    print(f"\nWrote {settings.output}: results.json and resolution_consistency.png.")


if __name__ == "__main__":
    sys.exit(main())
