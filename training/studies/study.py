"""Study files: which recipes are compared, by which measure; differences of paired runs with intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Gt
from pydantic import Field, model_validator
from torch import Tensor

from core.errors import check_choice, did_you_mean
from core.seeds import make_generator
from core.settings import load, read_yaml, require
from training.recipe import Recipe, RecipeError, RecipeSection, load_recipe
from training.recipe_sections import Named
from training.student.build import check_student_views


LEVEL = 0.95
NUM_RESAMPLES = 1000
"""Our choice: the standard deviation of as many has an error of 2 %."""


class Difference(NamedTuple):
    """A mean difference over paired seeds.

    Attributes:
        mean: The difference.
        low: Lower end of its interval at `LEVEL`.
        high: Upper end.
        p_value: Two-sided, of no difference.
    """

    mean: float
    low: float
    high: float
    p_value: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does."""
        return self.low > 0 or self.high < 0


def draw_sources(num_sources: int, seed: int = 0) -> Tensor:
    """Return how often each source is drawn, float64 `(NUM_RESAMPLES, num_sources)`."""
    generator = make_generator(seed, "bootstrap")
    drawn = torch.randint(num_sources, (NUM_RESAMPLES, num_sources), generator=generator)
    times = torch.zeros(NUM_RESAMPLES, num_sources, dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones(drawn.shape).double())


def effective_sources(weights: Sequence[float]) -> float:
    """Return how many sources of equal weight would leave as little to chance as these.

    A source's part of the variance goes with the square of its weight where its images move together. 14 pictures with
    40 images each and 240 with two count as 15.

    Args:
        weights: Of each source, at least 0, not all 0.

    References:
        Carter, Schnepel, Steigerwald, "Asymptotic behavior of a t-test robust to cluster heterogeneity", Review of
        Economics and Statistics 99(4), 2017, whose "effective number of clusters" this is for a mean.
    """
    squares = torch.tensor(weights, dtype=torch.float64).square()
    return float(squares.sum().square() / squares.square().sum())


def paired_difference(differences: Sequence[float], resampled: Tensor | None, num_sources: float) -> Difference | None:
    """Return the mean of differences with its interval, None for fewer than two, or if nothing varies at all.

    Args:
        differences: One for each seed.
        resampled: The same on each draw of the sources, `(num_seeds, num_resamples)`; None where images are not drawn,
            so that the interval is of the seeds alone.
        num_sources: Pictures that are drawn, as `effective_sources` counts them.
    """
    from scipy.stats import t as student_t

    count = len(differences)
    if count < 2:
        return None
    values = torch.tensor(differences, dtype=torch.float64)
    of_seeds = values.var().item() / count
    of_sources = 0.0 if resampled is None else resampled.mean(0).var().item()
    mean, variance = values.mean().item(), of_seeds + of_sources
    if variance == 0:
        return None
    freedom = variance**2 / (of_seeds**2 / (count - 1) + of_sources**2 / max(num_sources - 1, 1))
    error = variance**0.5
    margin = float(student_t.ppf((1 + LEVEL) / 2, freedom)) * error
    p_value = 2 * float(student_t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - margin, mean + margin, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


STUDIES_DIR = Path(__file__).parents[1] / "studies"

UNWATCHED = {
    "every_steps": 100,
    "trackers": [],
    "use_progress_bar": False,
    "picture_every_steps": None,
    "metrics_every_steps": None,
}
"""How runs of a study log: they are measured in the end, and many of them share a terminal."""
CHECKPOINTS = {"every_steps": 100, "keep": 1}
"""Our choice: what a run that is stopped loses is about a minute."""

DENSE, SUMMARY, WORST = "dense_error", "summary_error", "worst"
"""Errors by teacher, `dense_error/TEACHER`; `worst` is the largest of all teachers'."""
FIXED_PATTERN, SHIFT_ERROR, CONSISTENCY, KNN, MIOU = "fixed_pattern", "shift_error", "consistency", "knn_sets", "miou"
"""Of the backbone. docs/studies.md says what all of them are."""


def check_measure(name: str, teachers: Sequence[str]) -> None:
    """Refuse a primary measure that does not exist.

    Raises:
        RecipeError: With what there is.
    """
    errors = [f"{family}/{teacher}" for family in (DENSE, SUMMARY) for teacher in (*teachers, WORST)]
    check_choice("primary", name, [*errors, FIXED_PATTERN, SHIFT_ERROR, CONSISTENCY, KNN, MIOU], error=RecipeError)


def better_direction(measure: str) -> str:
    """Return which way a measure improves, in words."""
    is_error = measure.partition("/")[0] in (DENSE, SUMMARY, FIXED_PATTERN, SHIFT_ERROR)
    return f"{'lower' if is_error else 'higher'} is better"


class Arm(Named):
    """One recipe of a study.

    Attributes:
        name: In tables, and of its lines in the raw results.
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
        question: What is asked.
        recipe: Name of a recipe, or a file of your own that ends in .yaml.
        changes: Changes of the recipe for all arms, "section.field=value".
        seeds: One run of each arm for each: arms are compared seed by seed.
        primary: The measure that decides; it is chosen before the runs. The others only describe.
        sizes_px: Sizes at which features of an image are compared with those at the largest.
        num_images: Held-out images that are measured on.
        arms: What is compared; the first one is what others are compared with.
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
    """Which arm is compared with which."""

    arm: str
    against: str


class OpenedStudy(NamedTuple):
    """A study with its recipes.

    Attributes:
        source: As it was named.
        name: That of its file.
        study: What the file says.
        reference: The recipe without the changes of any arm: it names the data, and the teachers that are measured by.
        recipes: By arm; each run only changes the seed.
        raw_results: The file of raw results, beside the study's.
    """

    source: str
    name: str
    study: Study
    reference: Recipe
    recipes: Mapping[str, Recipe]
    raw_results: Path

    def comparisons(self) -> list[Comparison]:
        """Return what is compared, in the order of the arms."""
        first, named = self.study.arms[0].name, {arm.against for arm in self.study.arms}
        return [
            Comparison(arm.name, arm.against or first)
            for arm in self.study.arms
            if arm.against is not None or arm.name not in {first, *named}
        ]

    def recipe(self, arm: str, seed: int) -> Recipe:
        """Return the recipe of a run."""
        return self.recipes[arm].replace(seed=seed)


def list_studies() -> list[str]:
    """Return the names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES_DIR.glob("*.yaml"))


def open_study(source: str) -> OpenedStudy:
    """Read a study and its recipes.

    Args:
        source: Name of a file in `training/studies` without `.yaml`, or a path ending in `.yaml` or `.yml`.

    Raises:
        RecipeError: If there is no such study, it is none, or a recipe of it cannot be used; the message is one line.
    """
    path = _find(source)
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
        return _opened(source, path, study)
    except RecipeError as error:
        raise RecipeError(f"Study {source!r}: {error}") from error


def _find(source: str) -> Path:
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise RecipeError(f"Study file {source!r} does not exist.")
        return path
    names = list_studies()
    if source not in names:
        raise RecipeError(
            f"Unknown study {source!r}.{did_you_mean(source, names)} Studies: {', '.join(names)}; a file of your own "
            "must end in .yaml."
        )
    return STUDIES_DIR / f"{source}.yaml"


def _opened(source: str, path: Path, study: Study) -> OpenedStudy:
    reference = _run_recipe(study, study.recipe, study.changes)
    recipes = {arm.name: _arm_recipe(study, arm) for arm in study.arms}
    teachers = [teacher.name for teacher in reference.teachers]
    check_measure(study.primary, teachers)
    for name, recipe in recipes.items():
        if [teacher.name for teacher in recipe.teachers] != teachers:
            raise RecipeError(f"`teachers` of arm {name!r} must be {teachers}, as all are measured by them.")
        if recipe.data != reference.data:
            raise RecipeError(f"`data` of arm {name!r} must be that of all: runs are compared on the same images.")
        if recipe.stages:
            raise RecipeError(f"`stages` of arm {name!r} must be empty: a run of a study has one.")
    return OpenedStudy(source, path.stem, study, reference, recipes, path.with_suffix(".jsonl"))


def _arm_recipe(study: Study, arm: Arm) -> Recipe:
    try:
        return _run_recipe(study, arm.recipe or study.recipe, [*study.changes, *arm.changes])
    except RecipeError as error:
        raise RecipeError(f"`arms.{arm.name}`: {error}") from error


def _run_recipe(study: Study, source: str, changes: list[str]) -> Recipe:
    """Return a recipe as it is run here: in one thread, since runs stand side by side, and without a word."""
    if any(change.partition("=")[0].strip() == "seed" for change in changes):
        raise RecipeError("`changes` must leave out `seed`, which is each run's: `seeds` of the study names them.")
    recipe = load_recipe(source, changes)
    check_student_views(recipe)  # now, not hours later when its turn comes
    quiet: dict[str, Any] = {
        "logging": recipe.logging.replace(**UNWATCHED),
        "checkpoints": recipe.checkpoints.replace(**CHECKPOINTS),
        "student": recipe.student.replace(passes_at_once=1),
    }
    return recipe.replace(**quiet)
