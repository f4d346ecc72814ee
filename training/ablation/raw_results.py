"""The files that stay of a study: what each run scored, by source picture, small enough to be committed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from foundation.files import write_text
from foundation.settings import differences, with_defaults
from training.ablation.measures import (
    CONSISTENCY,
    DENSE,
    FIXED_PATTERN,
    KNN,
    MIOU,
    SHIFT_ERROR,
    SUMMARY,
    WORST,
    of_tokens,
)
from training.ablation.statistics import effective_sources
from training.recipe import Recipe, RecipeError, decisive_part


HELD_OUT = "held_out.json"
DIGITS = 5
"""Of the numbers in the files; our choice: differences of interest are in the third."""
MAX_DIFFERENCES_SHOWN = 3
ROUNDING = 0.02
"""How far a picture's sums over the same images may be apart, relative to them or, if larger, to the pictures' mean.

Our choice: decoders, resizes and matrix products of two machines round differently, which moved sums by up to .005 and
the smallest, of a single image, by .021; other images move them by much more.
"""
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_File = TypeVar("_File")


@dataclass(frozen=True)
class HeldOutSums:
    """What all runs of a study were measured on.

    Attributes:
        fingerprint: Of the images.
        num_images: How many.
        size_px: At which adaptors and the grid's patterns were measured.
        sizes_px: Between which features were compared.
        weights: By measure, what sums over the images of each source are divided by.
    """

    __pydantic_config__ = _STRICT

    fingerprint: str
    num_images: int
    size_px: int
    sizes_px: list[int]
    weights: dict[str, list[float]]

    @property
    def num_sources(self) -> int:
        """How many pictures the images are made of."""
        return len(self.weights[CONSISTENCY])

    def is_of_the_images_of(self, other: HeldOutSums) -> bool:
        """Whether both were measured on the same images, to what machines round differently."""
        if (self.num_images, self.size_px, self.sizes_px) != (other.num_images, other.size_px, other.sizes_px):
            return False
        lengths, others = ({name: len(sums) for name, sums in each.weights.items()} for each in (self, other))
        return lengths == others and all(
            math.isclose(*pair, rel_tol=ROUNDING, abs_tol=ROUNDING * fmean(own))
            for name, own in self.weights.items()
            for pair in zip(own, other.weights[name], strict=True)
        )


@dataclass(frozen=True)
class RunResult:
    """What one run scored.

    Attributes:
        arm: Its name.
        seed: Of the run.
        held_out: Fingerprint of the images.
        recipe: What decided the weights.
        sums: By measure, sums over the images of each source picture.
        numbers: Measures that are no such sums.
        run: Machine, versions, date and seconds.
        curves: Steps and values of what the run measured on its way, where the study asks for it.
        failure: Why there are no scores: the run diverged. Such a result stays, so that the study goes on and says so.
        folders: By path in the recipe, a hash of the weights there: a teacher's, its upsampler's, the student's first.
    """

    __pydantic_config__ = _STRICT

    arm: str
    seed: int
    held_out: str
    recipe: dict[str, Any]
    sums: dict[str, list[float]]
    numbers: dict[str, float]
    run: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    failure: str = ""
    folders: dict[str, str] = field(default_factory=dict)


def result_path(folder: Path, arm: str, seed: int) -> Path:
    """Return where the raw result of a run lies."""
    return folder / f"{arm}.seed-{seed}.json"


def save_raw(path: Path, content: HeldOutSums | RunResult) -> None:
    """Write a file of raw results; a reader never sees half of it."""
    write_text(path, json.dumps(_rounded(asdict(content)), separators=(",", ":")).replace("},", "},\n") + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: each if key == "recipe" else _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def load_raw(path: Path, kind: type[_File]) -> _File:
    """Read a file that `save_raw` wrote.

    Raises:
        RecipeError: If it is damaged or another file.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        text = " ".join(str(error).split())
        raise RecipeError(f"{str(path)!r} is no raw result of `training.ablate`: {text:.200}. Delete it.") from error


def load_runs(folder: Path, held_out: HeldOutSums, recipes: Mapping[str, Recipe]) -> dict[tuple[str, int], RunResult]:
    """Read the raw results of a study, by arm and seed.

    Args:
        folder: Of the study.
        held_out: What they must be measured on.
        recipes: By arm, what they must be of. Settings that a result says nothing of had their defaults.

    Raises:
        RecipeError: If one is damaged, or of another recipe, other images or other weights in a folder that its recipe
            names; the message says what to do.
    """
    runs: dict[tuple[str, int], RunResult] = {}
    folders: dict[str, tuple[str, Path]] = {}
    for arm, recipe in recipes.items():
        for path in sorted(folder.glob(f"{arm}.seed-*.json")):
            result = load_raw(path, RunResult)
            if result_path(folder, result.arm, result.seed) != path or result.arm != arm:
                raise RecipeError(f"{str(path)!r} is of {result.arm!r}, seed {result.seed}. Give it back its name.")
            if result.held_out != held_out.fingerprint:
                raise RecipeError(f"{str(path)!r} was measured on other images. Delete it to run it again.")
            _check_recipe(path, result, recipe)
            for name, weights in result.folders.items():
                known, other = folders.setdefault(name, (weights, path))
                if known != weights:
                    raise RecipeError(
                        f"{str(path)!r} and {str(other)!r} learned from different weights in {name!r}. Delete those "
                        "that are not of what is there now, to run them again."
                    )
            runs[arm, result.seed] = result
    return runs


def _check_recipe(path: Path, result: RunResult, recipe: Recipe) -> None:
    own = decisive_part(recipe.replace(seed=result.seed).to_dict())
    changed = differences(decisive_part(with_defaults(Recipe, result.recipe)), own)
    if changed:
        shown = "; ".join(changed[:MAX_DIFFERENCES_SHOWN])
        raise RecipeError(
            f"{str(path)!r} is of another recipe ({shown}). Delete it to run it again, or name the arm otherwise."
        )


@dataclass
class StudyResults:
    """All that is known of a study so far.

    Attributes:
        held_out: What was measured on.
        runs: By arm and seed, those that have scores.
        failures: By arm and seed, why others have none.
        bootstrap: How often each source was drawn, `(num_resamples, num_sources)`.
    """

    held_out: HeldOutSums
    runs: Mapping[tuple[str, int], RunResult]
    failures: Mapping[tuple[str, int], str]
    bootstrap: Tensor

    def measures(self) -> list[str]:
        """Return what was measured of every run, in the order of the tables."""
        if not self.runs:
            return []
        summed = set.intersection(*(set(run.sums) for run in self.runs.values()))
        numbers = set.intersection(*(set(run.numbers) for run in self.runs.values()))
        names = []
        for family in (DENSE, SUMMARY):
            own = [name for name in self.held_out.weights if name in summed and name.startswith(f"{family}/")]
            names += own + ([f"{family}/{WORST}"] if len(own) > 1 else [])
        plain = [name for name in (FIXED_PATTERN, SHIFT_ERROR) if name in numbers]
        return [*names, *plain, CONSISTENCY, *(name for name in (KNN, MIOU) if name in numbers), *of_tokens(numbers)]

    def seeds(self, *arms: str) -> list[int]:
        """Return the seeds that all of some arms were run with."""
        return sorted(set.intersection(*({seed for name, seed in self.runs if name == arm} for arm in arms)))

    def value(self, arm: str, seed: int, measure: str) -> float:
        """Return a measure of a run."""
        result = self.runs[arm, seed]
        if measure in result.numbers:
            return result.numbers[measure]
        return float(self._ratio(result, measure, torch.ones(1, self.held_out.num_sources, dtype=torch.float64)))

    def resampled(self, arm: str, seed: int, measure: str) -> Tensor | None:
        """Return a measure of a run on each draw of sources, `(num_resamples,)`; None for what is no sum over them."""
        result = self.runs[arm, seed]
        return None if measure in result.numbers else self._ratio(result, measure, self.bootstrap)

    def num_effective_sources(self, measure: str) -> float:
        """Return how many pictures carry a sum over images, of the worst teacher's the fewest of all teachers'."""
        family, _, teacher = measure.partition("/")
        of_teachers = [name for name in self.held_out.weights if name.startswith(f"{family}/")]
        names = of_teachers if teacher == WORST else [measure]
        return min(effective_sources(self.held_out.weights[name]) for name in names)

    def _ratio(self, result: RunResult, measure: str, draws: Tensor) -> Tensor:
        family, _, teacher = measure.partition("/")
        if teacher == WORST:
            own = [name for name in result.sums if name.startswith(f"{family}/")]
            return torch.stack([self._ratio(result, name, draws) for name in own]).amax(0)
        errors, weights = (
            torch.tensor(sums[measure], dtype=torch.float64) for sums in (result.sums, self.held_out.weights)
        )
        return (draws @ errors) / (draws @ weights)
