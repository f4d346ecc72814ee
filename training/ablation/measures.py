"""The names of what is measured of each student, what they mean, and which direction is better."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from foundation.errors import check_choice
from training.recipe import RecipeError


DENSE, SUMMARY = "dense_error", "summary_error"
WORST = "worst"
COSINE, TOKENS = "cosine", "tokens"
FIXED_PATTERN, SHIFT_ERROR, CONSISTENCY, KNN, MIOU = "fixed_pattern", "shift_error", "consistency", "knn", "miou"

EXPLANATIONS = {
    f"{DENSE}/TEACHER": "1 - R2 of an adaptor's dense features in its teacher's own space: 0 for the teacher, 1 for "
    f"its mean. `{DENSE}/{WORST}` is the largest of all teachers'. Lower is better.",
    f"{SUMMARY}/TEACHER": "mean squared angle to the teacher's summary over the dispersion of these summaries: 0 for "
    f"the teacher, about 1 for its mean direction. `{SUMMARY}/{WORST}` as above. Lower is better.",
    FIXED_PATTERN: "share of the variance of the backbone's dense features that depends on the place in the grid "
    "alone. Lower is better.",
    SHIFT_ERROR: "share of that variance that is lost where the image moves by a quarter of the grid. Lower is better.",
    CONSISTENCY: "cosine of the backbone's dense features with those of the same image at the largest size, about "
    "their mean, averaged over the other sizes. Higher is better.",
    KNN: "accuracy of weighted kNN from the summary, on held-out objects. Higher is better.",
    MIOU: "mean IoU of a linear probe on held-out scenes. Higher is better.",
    f"{KNN}/1 {TOKENS}": f"of RADIO1D, `{KNN}`, `{MIOU}` and `{COSINE}` (of adaptors with their teachers, about the "
    "teacher's mean, averaged over teachers) with one global token, or another number. Higher is better.",
}
HIGHER_IS_BETTER = {CONSISTENCY, KNN, MIOU}


def token_measure(measure: str, count: int) -> str:
    """Return the name of a measure with so many global tokens."""
    return f"{measure}/{count} {TOKENS}"


def read_token_measure(name: str) -> tuple[str, int] | None:
    """Return the measure and the number of global tokens of such a name; None for others."""
    match = re.fullmatch(rf"(.+)/(\d+) {TOKENS}", name)
    return None if match is None else (match[1], int(match[2]))


def of_tokens(names: Iterable[str]) -> list[str]:
    """Return those that are measures with some number of global tokens, by measure and number."""
    return [token_measure(*read) for read in sorted(filter(None, map(read_token_measure, names)))]


def names_of(family: str, teachers: Sequence[str]) -> list[str]:
    """Return the measures of a family, one for each teacher."""
    return [f"{family}/{teacher}" for teacher in teachers]


def check_measure(name: str, teachers: Sequence[str]) -> None:
    """Refuse a primary measure that does not exist.

    Raises:
        RecipeError: With what there is.
    """
    by_teacher = [known for family in (DENSE, SUMMARY) for known in names_of(family, [*teachers, WORST])]
    known = [*by_teacher, FIXED_PATTERN, SHIFT_ERROR, CONSISTENCY, KNN, MIOU]
    check_choice("primary", name, known, error=RecipeError)


def is_higher_better(name: str) -> bool:
    """Return whether more of a measure is better."""
    return name in HIGHER_IS_BETTER or read_token_measure(name) is not None


def better_direction(name: str) -> str:
    """Return which way a measure improves, in words."""
    return f"{'higher' if is_higher_better(name) else 'lower'} is better"
