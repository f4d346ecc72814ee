"""The raw results of a study: one file of JSON lines that stays, small enough to be committed.

Its first line describes the held-out images, each other line is one run: its scores by source picture, with recipe,
seed and processor. Lines are only added, each in one write under a lock, so that runs side by side may share the file.
A line that a kill cut off has no end of line: readers skip it, and the next writer removes it. To repeat a run, delete
its line.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO, TypeVar

import torch
from filelock import FileLock
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from modeling_radio.core.files import one_line_errors, remove_lock
from modeling_radio.core.seeds import make_generator
from modeling_radio.core.settings import differences, with_defaults, without_unknown
from modeling_radio.studies.study import (
    CONSISTENCY,
    DENSE,
    FIXED_PATTERN,
    INSIDE,
    KNN,
    MIOU,
    RING,
    SHIFT_ERROR,
    SUMMARY,
    WORST,
    OpenedStudy,
)
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, decisive_part


logger = logging.getLogger(__name__)

DIGITS = 5
"""Significant digits of the numbers in the files; our choice: differences of interest are in the third."""
MAX_DIFFERENCES_SHOWN = 3
ROUNDING = 0.02
"""Tolerance of a picture's sums over the same images, relative to them or, if larger, to the pictures' mean.

Our choice: decoders, resizes and matrix products of two machines round differently, which moved sums by up to .005 and
the smallest, of a single image, by .021; other images move them by much more.
"""
NUM_RESAMPLES = 1000
"""Our choice: the standard deviation of as many has an error of 2 %."""
_Line = TypeVar("_Line")


def draw_sources(num_sources: int) -> Tensor:
    """Return how often each source is drawn with replacement, float64 `(NUM_RESAMPLES, num_sources)`."""
    generator = make_generator(0, "bootstrap")
    drawn = torch.randint(num_sources, (NUM_RESAMPLES, num_sources), generator=generator)
    times = torch.zeros(NUM_RESAMPLES, num_sources, dtype=torch.float64)
    return times.scatter_add_(1, drawn, torch.ones(drawn.shape).double())


def effective_sources(weights: Sequence[float]) -> float:
    """Return the number of sources of equal weight that would have the same variance.

    A source's part of the variance grows with the square of its weight where its images move together. 14 pictures with
    40 images each and 240 with two count as 15.

    Args:
        weights: Weight of each source, at least 0, not all 0.

    References:
        Carter, Schnepel, Steigerwald, "Asymptotic behavior of a t-test robust to cluster heterogeneity", Review of
        Economics and Statistics 99(4), 2017, whose "effective number of clusters" this is for a mean.
    """
    squares = torch.tensor(weights, dtype=torch.float64).square()
    return float(squares.sum().square() / squares.square().sum())


@dataclass(frozen=True)
class HeldOutSums:
    """The images that all runs of a study were measured on.

    Attributes:
        fingerprint: Fingerprint of the images.
        num_images: Their number.
        size_px: Size at which adaptors and the grid's patterns were measured.
        sizes_px: Sizes between which features were compared.
        weights: By measure, divisors of the sums over the images of each source.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    fingerprint: str
    num_images: int
    size_px: int
    sizes_px: list[int]
    weights: dict[str, list[float]]

    @property
    def num_sources(self) -> int:
        """Number of pictures that the images are made of."""
        return len(self.weights[CONSISTENCY])

    def is_of_the_images_of(self, other: HeldOutSums) -> bool:
        """Return whether both were measured on the same images, up to the rounding of machines."""
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
    """Scores of one run. A line may have more fields; they are ignored.

    Attributes:
        arm: Its name.
        seed: Seed of the run.
        recipe: The part that decided the weights.
        sums: By measure, sums over the images of each source picture.
        numbers: Measures that are no such sums.
        run: Processor, versions, date and seconds.
        failure: Reason for missing scores: the run diverged. Such a result stays, so that the study goes on.
        folders: Hash of the weights by path in the recipe: of a teacher, its upsampler, the student's initial weights.
        gone: Whether the arm's options are no longer in the code. It stays in tables and in Holm's correction, beside
            the study's first arm.
    """

    __pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)

    arm: str
    seed: int
    recipe: dict[str, Any]
    sums: dict[str, list[float]]
    numbers: dict[str, float]
    run: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    folders: dict[str, str] = field(default_factory=dict)
    gone: bool = False


def claim(path: Path, held_out: HeldOutSums) -> None:
    """Begin a file of raw results, or check that an existing one has the same images.

    Raises:
        RecipeError: If it has other images.
    """
    with _locked(path) as file:
        lines = _whole_lines(path, file)
        if not lines:
            _append(file, held_out)
        elif not _read(path, 1, lines[0], HeldOutSums).is_of_the_images_of(held_out):
            raise RecipeError(
                f"Held-out images must be those of {str(path)!r}, got others: the packages that could be reached, "
                "`num_images` or `sizes_px` have changed. Delete that file to measure anew."
            )


def add_run(path: Path, result: RunResult) -> None:
    """Add a run to a file that `claim` has begun, unless another process has added the same run."""
    with _locked(path) as file:
        lines = _whole_lines(path, file)
        known = (_read(path, number, line, RunResult) for number, line in enumerate(lines[1:], 2))
        if (result.arm, result.seed) not in {(each.arm, each.seed) for each in known}:
            _append(file, result)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    lock = FileLock(f"{path}.lock")
    with one_line_errors(path), lock, path.open("a+b") as file:
        try:
            yield file
        finally:
            remove_lock(lock)


def _whole_lines(path: Path, file: BinaryIO) -> list[bytes]:
    """Return the lines of a file without one that was cut off, which is logged."""
    file.seek(0)
    *lines, rest = file.read().split(b"\n")
    if rest:
        logger.warning(
            "Line %d of %r is incomplete, perhaps because a run was killed; this run will be repeated.",
            len(lines) + 1,
            str(path),
        )
    return lines


def _append(file: BinaryIO, content: HeldOutSums | RunResult) -> None:
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.write(json.dumps(_rounded(asdict(content)), separators=(",", ":")).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: each if key == "recipe" else _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _read(path: Path, number: int, line: bytes, kind: type[_Line]) -> _Line:
    try:
        return TypeAdapter(kind).validate_json(line, strict=True)
    except ValidationError as error:
        text = " ".join(str(error).split())
        raise RecipeError(f"Line {number} of {str(path)!r} is no raw result: {text:.200}. Delete it.") from error


@dataclass
class StudyResults:
    """Results of a study so far.

    Attributes:
        held_out: The images.
        results: By arm and seed.
        bootstrap: Counts of each source in each draw, `(num_resamples, num_sources)`, see `draw_sources`.
    """

    held_out: HeldOutSums
    results: Mapping[tuple[str, int], RunResult]
    bootstrap: Tensor

    @property
    def runs(self) -> dict[tuple[str, int], RunResult]:
        """Results with scores."""
        return {key: result for key, result in self.results.items() if not result.failure}

    @property
    def failures(self) -> dict[tuple[str, int], str]:
        """Reasons of results without scores."""
        return {key: result.failure for key, result in self.results.items() if result.failure}

    @property
    def gone(self) -> list[str]:
        """Arms that are no longer in the study."""
        return list(dict.fromkeys(result.arm for result in self.results.values() if result.gone))

    def measures(self) -> list[str]:
        """Return the measures that every run has, in the order of the tables."""
        if not self.runs:
            return []
        summed = set.intersection(*(set(run.sums) for run in self.runs.values()))
        first, *others = (run.numbers for run in self.runs.values())
        numbers = [name for name in first if all(name in other for other in others)]
        names = []
        for family in (DENSE, RING, INSIDE, SUMMARY):
            own = [name for name in self.held_out.weights if name in summed and name.startswith(f"{family}/")]
            names += own + ([f"{family}/{WORST}"] if len(own) > 1 else [])
        order = (FIXED_PATTERN, SHIFT_ERROR, CONSISTENCY, KNN, MIOU)
        names += [name for name in order if name in (*numbers, CONSISTENCY)]
        return [*names, *(name for name in numbers if name not in order)]

    def seeds(self, *arms: str) -> list[int]:
        """Return the seeds that all of the arms have scores of."""
        return sorted(set.intersection(*({seed for name, seed in self.runs if name == arm} for arm in arms)))

    def value(self, arm: str, seed: int, measure: str) -> float:
        """Return a measure of a run."""
        result = self.results[arm, seed]
        if measure in result.numbers:
            return result.numbers[measure]
        return float(self._ratio(result, measure, torch.ones(1, self.held_out.num_sources, dtype=torch.float64)))

    def resampled(self, arm: str, seed: int, measure: str) -> Tensor | None:
        """Return a measure of a run on each draw of sources, `(num_resamples,)`; None if it is no sum over sources."""
        result = self.results[arm, seed]
        return None if measure in result.numbers else self._ratio(result, measure, self.bootstrap)

    def num_effective_sources(self, measure: str) -> float:
        """Return the effective number of pictures of a sum over images; of the worst teacher the least of all."""
        return min(effective_sources(each.tolist()) for each in self._sums(measure, self.held_out.weights).values())

    def _ratio(self, result: RunResult, measure: str, draws: Tensor) -> Tensor:
        weights = self._sums(measure, self.held_out.weights)
        errors = self._sums(measure, result.sums)
        return torch.stack([(draws @ own) / (draws @ weights[name]) for name, own in errors.items()]).amax(0)

    def _sums(self, measure: str, stored: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
        """Return the stored sums of a measure, each `(num_sources,)`, by name: of the worst teacher those of all."""
        family, slash, teacher = measure.partition("/")
        names = [name for name in stored if name.startswith(family + slash)] if teacher == WORST else [measure]
        return {name: torch.tensor(stored[name], dtype=torch.float64) for name in names}


def load_results(opened: OpenedStudy) -> StudyResults | None:
    """Read the raw results of a study; None where there are none.

    Raises:
        RecipeError: If a line is damaged, there twice, of no arm, of another recipe, or of other weights in a folder
            that its recipe names; the message says what to do.
    """
    path = opened.raw_results
    lines = []
    if path.is_file():
        with path.open("rb") as file:
            lines = _whole_lines(path, file)
    if not lines:
        return None
    held_out = _read(path, 1, lines[0], HeldOutSums)
    runs: dict[tuple[str, int], RunResult] = {}
    for number, line in enumerate(lines[1:], 2):
        result = _read(path, number, line, RunResult)
        problem = _problem(opened, result, runs)
        if problem:
            raise RecipeError(f"Line {number} of {str(path)!r}, {result.arm!r} with seed {result.seed}, {problem}")
        runs[result.arm, result.seed] = result
    return StudyResults(held_out, runs, draw_sources(held_out.num_sources))


def _problem(opened: OpenedStudy, result: RunResult, runs: Mapping[tuple[str, int], RunResult]) -> str:
    """Return why a run does not fit the study and the runs before it; "" if it fits."""
    if (result.arm, result.seed) in runs:
        return "is there twice. Delete one of the two."
    for name, weights in result.folders.items():
        if any(run.folders.get(name, weights) != weights for run in runs.values()):
            return f"learned from other weights in {name!r} than one before it. Delete what is not of those of now."
    if result.gone:
        return ""
    if result.arm not in opened.recipes:
        return 'is of no arm of the study. Give the arm back its name, delete the line, or add `"gone":true` to it.'
    # Only the former default of a removed option is left; arms that set it otherwise are gone.
    then = with_defaults(Recipe, without_unknown(Recipe, result.recipe))
    changed = differences(decisive_part(then), decisive_part(opened.recipe(result.arm, result.seed).to_dict()))
    shown = "; ".join(changed[:MAX_DIFFERENCES_SHOWN])
    return f"is of another recipe ({shown}). Delete it to run it again, or name the arm otherwise." if changed else ""
