"""What was measured at test time, as one file among the raw results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from foundation.files import write_text
from training.demo_kit.tuning.raw_results import RawResultError, rounded


FOLDER, FILE = "test_time", "results.json"
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class LookScore:
    """What one model scored by one way to look.

    Attributes:
        subject: Name of the images and of what is found in them.
        look: Name of the way.
        seed: Of the model.
        num_images: How many were looked at.
        metrics: Of the task, those that are shown.
        pixels: How many the network saw for an image.
    """

    __pydantic_config__ = _STRICT

    subject: str
    look: str
    seed: int
    num_images: int
    metrics: dict[str, float]
    pixels: int


@dataclass(frozen=True)
class FittedScore:
    """What something that is fitted to validation images is worth, mean of both halves in either role.

    Attributes:
        subject: Name of the images and of what is found in them.
        measure: Name of the score.
        seed: Of the model.
        before: Without anything fitted.
        held_out: Fitted to one half of the images, measured on the other one.
        same: Fitted to one half and measured on the same.
    """

    __pydantic_config__ = _STRICT

    subject: str
    measure: str
    seed: int
    before: float
    held_out: float
    same: float


@dataclass(frozen=True)
class Measured:
    """All that was measured.

    Attributes:
        arm: Way of tuning of the models.
        looks: In the order in which they are shown.
        fitted: In the order in which they are shown.
        run: Command, date, machine and versions.
    """

    __pydantic_config__ = _STRICT

    arm: str
    looks: list[LookScore]
    fitted: list[FittedScore]
    run: dict[str, Any]


def save(folder: Path, measured: Measured) -> None:
    """Write the file into the folder of raw results; a reader never sees half of it."""
    path = folder / FOLDER / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rounded(asdict(measured)), indent=1) + "\n")


def load(folder: Path) -> Measured | None:
    """Read the file from the folder of raw results; None if there is none.

    Raises:
        RawResultError: If it is damaged.
    """
    path = folder / FOLDER / FILE
    if not path.is_file():
        return None
    try:
        return TypeAdapter(Measured).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        text = " ".join(str(error).split())
        raise RawResultError(f"{str(path)!r} is no result of the test-time options: {text:.200}. Delete it.") from error
