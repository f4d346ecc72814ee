"""What each run of the comparison scored: one small file each, which is committed."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from foundation.errors import UserError
from foundation.files import write_text


RESULTS_DIR = Path(__file__).parents[2] / "studies" / "tuning"
REPORT = Path(__file__).parents[2] / "FINETUNING.md"
DIGITS = 5  # our choice: differences of interest are in the third
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class RawResultError(UserError):
    """A file that is no raw result, or one of other settings; the message says what to do."""


@dataclass(frozen=True)
class TuningResult:
    """What one run scored.

    Attributes:
        experiment: Name of the task.
        arm: Name of the way of tuning.
        seed: Of the run.
        student: Shape of the student, and a part of the digest of its weights.
        settings: What decided the result, without places.
        metrics: On the held-out images, after the last step.
        training_metrics: Those on as many images of the training; none of a teacher's probe.
        trainable_parameters: How many numbers were trained.
        parameters: How many there are, the head included.
        seconds: Of training, with one evaluation.
        peak_memory_mb: Largest resident memory of the process.
        run: Command, date, machine and versions.
    """

    __pydantic_config__ = _STRICT

    experiment: str
    arm: str
    seed: int
    student: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, float]
    training_metrics: dict[str, float]
    trainable_parameters: int
    parameters: int
    seconds: float
    peak_memory_mb: float
    run: dict[str, Any] = field(default_factory=dict)


def slug(name: str) -> str:
    """Return a name as part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def result_path(folder: Path, experiment: str, arm: str, seed: int) -> Path:
    """Return where the raw result of a run lies."""
    return folder / experiment / f"{slug(arm)}.seed-{seed}.json"


def save_result(folder: Path, result: TuningResult) -> None:
    """Write a raw result; a reader never sees half of it."""
    path = result_path(folder, result.experiment, result.arm, result.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rounded(asdict(result)), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Return what goes into a file, with numbers of few digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def load_result(path: Path) -> TuningResult:
    """Read a raw result.

    Raises:
        RawResultError: If it is damaged, or has another run's name.
    """
    try:
        result = TypeAdapter(TuningResult).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        text = " ".join(str(error).split())
        raise RawResultError(f"{str(path)!r} is no raw result of tuning: {text:.200}. Delete it.") from error
    if result_path(path.parent.parent, result.experiment, result.arm, result.seed) != path:
        raise RawResultError(f"{str(path)!r} is of {result.arm!r}, seed {result.seed}. Give it back its name.")
    return result


def load_results(folder: Path, experiment: str) -> dict[tuple[str, int], TuningResult]:
    """Read the raw results of a task, by arm and seed.

    Raises:
        RawResultError: If one is damaged.
    """
    results = [load_result(path) for path in sorted((folder / experiment).glob("*.seed-*.json"))]
    return {(result.arm, result.seed): result for result in results}
