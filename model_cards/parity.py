"""The file of a comparison with NVIDIA's code: `radio compare-release` writes it, the card shows it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from modeling_radio.core.files import write_text
from modeling_radio.metrics.results import load_typed


FILE = "parity.json"
"""Name of the file in a converted folder, whose card shows it."""
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Agreement:
    """Difference between one output of ours and NVIDIA's, over all images.

    Attributes:
        size: Size of the images, "HEIGHTxWIDTH" in pixels.
        window: Side of the ViTDet windows in tokens; None is global attention.
        output: Name of the output, such as "summary", "features" or "sam3 features".
        max_abs: Largest absolute difference.
        relative: Length of the difference divided by that of NVIDIA's output.
        cosine: Smallest cosine of a token of ours with NVIDIA's.
    """

    __pydantic_config__ = _STRICT

    size: str
    window: int | None
    output: str
    max_abs: float
    relative: float
    cosine: float


@dataclass(frozen=True)
class Cost:
    """Time and memory of one call with all adaptors, in processes that run one after the other.

    Attributes:
        size: Size of the images, "HEIGHTxWIDTH" in pixels.
        window: Side of the ViTDet windows in tokens; None is global attention.
        theirs_seconds: Time of the fastest call of NVIDIA's code.
        ours_seconds: Time of ours.
        theirs_mib: Peak memory of NVIDIA's code: allocated on the GPU, or held by the process; None where it cannot be
            measured.
        ours_mib: Peak memory of ours.
    """

    __pydantic_config__ = _STRICT

    size: str
    window: int | None
    theirs_seconds: float
    ours_seconds: float
    theirs_mib: float | None
    ours_mib: float | None


@dataclass
class Parity:
    """A comparison.

    Attributes:
        source: NVIDIA's repository, or the name of a folder.
        revision: Its commit; None for a folder.
        date: Date of the run.
        machine: Machine of the run.
        device: "cpu" or "cuda".
        dtype: Data type of weights and pixels.
        versions: Versions of Python and packages.
        images: Names of the images.
        tolerance: Largest relative difference that counts as equal.
        agreements: Differences of each case and output.
        costs: Costs of each case.
        remarks: Parts that were not compared, with reasons.
    """

    __pydantic_config__ = _STRICT

    source: str
    revision: str | None
    date: str
    machine: str
    device: str
    dtype: str
    versions: dict[str, str]
    images: list[str]
    tolerance: float
    agreements: list[Agreement]
    costs: list[Cost]
    remarks: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the file as JSON; a reader never sees half of it."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Parity:
        """Read a file that `save` wrote.

        Raises:
            ValueError: If `path` is another file.
        """
        return load_typed(cls, path, "file of `radio compare-release`")

    @property
    def worst(self) -> Agreement:
        """The output that differs most."""
        return max(self.agreements, key=lambda agreement: agreement.relative)

    def rows(self) -> list[list[str]]:
        """Return a row for each output and window: the worst over all sizes, as text."""
        groups: dict[tuple[int | None, str], list[Agreement]] = {}
        for agreement in self.agreements:
            groups.setdefault((agreement.window, agreement.output), []).append(agreement)
        return [
            [
                output,
                _window(window),
                _difference(max(each.max_abs for each in members)),
                _difference(max(each.relative for each in members)),
                f"{min(each.cosine for each in members):.7f}",
            ]
            for (window, output), members in groups.items()
        ]

    def cost_rows(self) -> list[list[str]]:
        """Return a row for each case: times and peak memory of both, as text; empty where not measured."""
        return [
            [
                f"{cost.size} px",
                _window(cost.window),
                *(f"{1000 * seconds:.1f}" for seconds in (cost.theirs_seconds, cost.ours_seconds)),
                *("" if mib is None else f"{mib:.0f}" for mib in (cost.theirs_mib, cost.ours_mib)),
            ]
            for cost in self.costs
        ]

    def summary(self) -> dict[str, Any]:
        """Return the values in the text around the tables."""
        sizes = list(dict.fromkeys(agreement.size for agreement in self.agreements))
        return {"sizes": sizes, "worst": _difference(self.worst.relative), "tolerance": f"{self.tolerance:g}"}


def find_parity(folder: Path) -> Parity | None:
    """Return the comparison that lies in a folder, if one does."""
    return Parity.load(folder / FILE) if (folder / FILE).is_file() else None


def _window(window: int | None) -> str:
    return "global" if window is None else f"windows of {window}"


def _difference(value: float) -> str:
    return f"{value:.1e}" if value else "0"
