"""Study files: the recipes that are compared, over paired seeds, and the measure that decides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Gt
from pydantic import Field, model_validator

from modeling_radio.checks_radio import check_choice, did_you_mean
from modeling_radio.core.settings import load, read_yaml, require
from modeling_radio.training.recipes.recipe import (
    Recipe,
    RecipeError,
    RecipeSection,
    load_recipe,
    refuse_code_of_others,
)
from modeling_radio.training.recipes.sections import NamedSection
from modeling_radio.training.student.build import check_student_views


STUDIES_DIR = Path(__file__).parent
IS_CLONE = (STUDIES_DIR.parent / "pyproject.toml").is_file()
QUIET_LOGGING = {
    "every_steps": 100,
    "trackers": [],
    "metrics_every_steps": None,
}
"""Logging of runs: they are measured at their end, and many of them share a terminal."""
CHECKPOINTS = {"every_steps": 100, "keep": 1}
"""Our choice: a run that is stopped loses about a minute."""

DENSE, SUMMARY, WORST = "dense_error", "summary_error", "worst"
"""Errors by teacher, `dense_error/TEACHER`; `worst` is the largest of all teachers."""
RING, INSIDE = "ring_error", "inside_error"
"""Dense errors of the outermost patches, and of the others; only in studies that one of them decides."""
FIXED_PATTERN, SHIFT_ERROR, CONSISTENCY, KNN, MIOU = "fixed_pattern", "shift_error", "consistency", "knn_sets", "miou"
"""Measures of the backbone. docs/explanation/studies.md explains all measures."""


def better_direction(measure: str) -> str:
    """Return the direction in which a measure improves, in words."""
    is_error = measure.partition("/")[0] in (DENSE, RING, INSIDE, SUMMARY, FIXED_PATTERN, SHIFT_ERROR)
    return f"{'lower' if is_error else 'higher'} is better"


class Arm(NamedSection):
    """One recipe of a study.

    Attributes:
        name: In tables and in the raw results.
        recipe: Recipe that it starts from; None for the study's.
        changes: Changes of the recipe, "section.field=value", after those of the study.
        against: Arm that it is compared with; None for the first one, or for nothing where others are compared with it.
    """

    recipe: str | None = None
    changes: list[str] = []
    against: str | None = None


class Study(RecipeSection):
    """A question, and the runs that shall answer it.

    Attributes:
        question: The question.
        recipe: Name of a recipe, or a file of your own that ends in .yaml.
        changes: Changes of the recipe for all arms, "section.field=value".
        seeds: Seeds; each arm has one run for each, and arms are compared seed by seed.
        primary: The measure that decides; it is chosen before the runs. The others only describe.
        sizes_px: Sizes at which features of an image are compared with those at the largest.
        num_images: Number of held-out images for the measurements.
        arms: The arms; the others are compared with the first one.
    """

    question: str
    recipe: str = "demo"
    changes: list[str] = []
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1)
    primary: str
    sizes_px: list[Annotated[int, Gt(0)]] = Field([96, 128, 192], min_length=2)
    num_images: int = Field(1024, gt=1)
    arms: list[Arm] = Field(min_length=2)

    @model_validator(mode="after")
    def _check(self) -> Study:
        names = [arm.name for arm in self.arms]
        is_valid = all(re.fullmatch(r"[\w-]+", name) for name in names) and len(set(names)) == len(names)
        require(is_valid, "arms (names)", names, "all different, of letters, digits, '_' and '-'")
        for arm in self.arms:
            if arm.against not in (None, *names) or arm.against == arm.name:
                hint = did_you_mean(arm.against, names)
                raise RecipeError(
                    f"`arms.{arm.name}.against` must be another arm's name, got {arm.against!r}.{hint} Arms: {names}."
                )
        for name, numbers in (("seeds", self.seeds), ("sizes_px", self.sizes_px)):
            require(len(set(numbers)) == len(numbers), name, numbers, "numbers that are all different")
        require(min(self.seeds) >= 0, "seeds", self.seeds, "numbers of at least 0")
        return self


class Comparison(NamedTuple):
    """An arm and the one that it is compared with."""

    arm: str
    against: str


class OpenedStudy(NamedTuple):
    """A study with its recipes.

    Attributes:
        source: Name or path that it was opened by.
        name: Name of its file.
        study: Content of its file.
        reference: The recipe without the changes of any arm; its data and teachers are measured with.
        recipes: By arm; runs of an arm differ in the seed alone.
        raw_results: The file of raw results.
    """

    source: str
    name: str
    study: Study
    reference: Recipe
    recipes: Mapping[str, Recipe]
    raw_results: Path

    def with_seeds(self, seeds: list[int]) -> OpenedStudy:
        """Return the study with other seeds."""
        return self._replace(study=self.study.replace(seeds=seeds))

    def comparisons(self, gone: Sequence[str] = ()) -> list[Comparison]:
        """Return the comparisons in the order of the arms, then those of arms that are gone with the first arm."""
        first, named = self.study.arms[0].name, {arm.against for arm in self.study.arms}
        own = [
            Comparison(arm.name, arm.against or first)
            for arm in self.study.arms
            if arm.against is not None or arm.name not in {first, *named}
        ]
        return [*own, *(Comparison(arm, first) for arm in gone)]

    def recipe(self, arm: str, seed: int) -> Recipe:
        """Return the recipe of a run."""
        return self.recipes[arm].replace(seed=seed)


def list_studies() -> list[str]:
    """Return the names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES_DIR.glob("*.yaml"))


def open_study(source: str, output: Path = Path("runs/ablate")) -> OpenedStudy:
    """Read a study and its recipes.

    Args:
        source: Name of a file in `studies` without `.yaml`, or a path ending in `.yaml` or `.yml`.
        output: Folder of the raw results of our own studies where the package is installed; they are beside the study
            in a clone, and for files of others.

    Raises:
        RecipeError: If the study is unknown or damaged, or one of its recipes cannot be used; the message is one line.
    """
    path = Path(source)
    results = path.parent
    if not source.endswith((".yaml", ".yml")):
        names = list_studies()
        if source not in names:
            raise RecipeError(
                f"Unknown study {source!r}.{did_you_mean(source, names)} Studies: {', '.join(names)}; a file of your "
                "own must end in .yaml."
            )
        path = STUDIES_DIR / f"{source}.yaml"
        results = STUDIES_DIR if IS_CLONE else output
    if not path.is_file():
        raise RecipeError(f"Study file {source!r} does not exist.")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Study {source!r} cannot be read: {error}.") from error
    except ValueError as error:
        raise RecipeError(f"Study {source!r} is {error}") from error
    if not isinstance(content, Mapping):
        raise RecipeError(f"Study {source!r} must hold a mapping with `question`, `primary` and `arms`.")
    try:
        study = load(Study, [content])
        reference, recipes = _recipes_of(study)
    except RecipeError as error:
        raise RecipeError(f"Study {source!r}: {error}") from error
    return OpenedStudy(source, path.stem, study, reference, recipes, results / f"{path.stem}.jsonl")


def _recipes_of(study: Study) -> tuple[Recipe, dict[str, Recipe]]:
    """Return the recipe without the changes of any arm, and that of each arm."""
    reference = _run_recipe(study.recipe, study.changes)
    teachers = [teacher.name for teacher in reference.teachers]
    errors = [f"{family}/{teacher}" for family in (DENSE, RING, INSIDE, SUMMARY) for teacher in (*teachers, WORST)]
    measures = [*errors, FIXED_PATTERN, SHIFT_ERROR, CONSISTENCY, KNN, MIOU]
    check_choice("primary", study.primary, measures, error=RecipeError)
    recipes: dict[str, Recipe] = {}
    for arm in study.arms:
        try:
            recipe = _run_recipe(arm.recipe or study.recipe, [*study.changes, *arm.changes])
        except RecipeError as error:
            raise RecipeError(f"`arms.{arm.name}`: {error}") from error
        if [teacher.name for teacher in recipe.teachers] != teachers:
            raise RecipeError(f"`teachers` of arm {arm.name!r} must be {teachers}, as all are measured by them.")
        if recipe.data != reference.data:
            raise RecipeError(f"`data` of arm {arm.name!r} must be that of all: runs are compared on the same images.")
        if recipe.stages:
            raise RecipeError(f"`stages` of arm {arm.name!r} must be empty: a run of a study has one.")
        recipes[arm.name] = recipe
    return reference, recipes


def _run_recipe(source: str, changes: list[str]) -> Recipe:
    """Return a recipe as a study runs it: in one thread, since runs stand side by side, and without output."""
    if any(change.partition("=")[0].strip() == "seed" for change in changes):
        raise RecipeError("`changes` must not set `seed`: `seeds` of the study lists the seeds of its runs.")
    recipe = load_recipe(source, changes)
    refuse_code_of_others(source, recipe, changes)
    check_student_views(recipe)  # now, not hours later when its turn comes
    quiet: dict[str, Any] = {
        "logging": recipe.logging.replace(**QUIET_LOGGING),
        "checkpoints": recipe.checkpoints.replace(**CHECKPOINTS),
        "student": recipe.student.replace(passes_at_once=1),
    }
    return recipe.replace(**quiet)
