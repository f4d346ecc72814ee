"""Chooses the precision of a page's graphs: the fastest in WebAssembly of those that agree with float32."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from torch import Tensor

from modeling_radio.conversion.graphs.files import EXTERNAL_DATA_BYTES, find_weights, open_graph
from modeling_radio.conversion.graphs.parity import compare
from modeling_radio.conversion.web.site import BUILDS
from modeling_radio.core.interruption import raised_signals


WebPrecision = Literal["fp32", "fp16", "int8"]
PrecisionChoice = Literal["auto", "fp32", "fp16", "int8"]
PRECISIONS: tuple[WebPrecision, ...] = ("fp32", "fp16", "int8")
LEAST_AGREEMENT = 0.999
"""Least mean cosine with float32 in every output. Our choice: maps and colors then look the same."""
NEGLIGIBLE = 1.1
"""A smaller file may be slower by this factor, which is within the noise of the times. Our choice."""
TIMEOUT_S = 600.0
"""Timeout of all measurements together. Our choice: a ViT-B takes some tens of seconds."""

Feeds = dict[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """A graph in one precision.

    Attributes:
        precision: Precision of its weights.
        path: Its file.
        agreement: Lowest mean cosine of an output with float32.
        milliseconds: Time of a pass in WebAssembly on one thread; `None` where it could not be measured.
    """

    precision: WebPrecision
    path: Path
    agreement: float
    milliseconds: float | None

    @property
    def megabytes(self) -> float:
        """Size of the file and of weights beside it."""
        return sum(each.stat().st_size for each in (self.path, *find_weights(self.path))) / 1e6

    @property
    def is_one_file(self) -> bool:
        """True if the weights are in the file, as browsers need them; 2 GB and more are not."""
        return not find_weights(self.path)


def measure(paths: Mapping[WebPrecision, Path], feeds: Sequence[Feeds], runtime: Mapping[str, Path]) -> list[Candidate]:
    """Compare and time one graph in several precisions.

    Args:
        paths: The files; float32 must be among them.
        feeds: Inputs to compare on; the first is timed.
        runtime: Files of ONNX Runtime Web by name; its WebAssembly build is timed in Node.js, if that is installed.
    """
    run = open_graph(paths["fp32"])
    expected = [run(each) for each in feeds]
    agreements = {name: _agreement(path, feeds, expected) for name, path in paths.items()}
    times = time_in_wasm({name: path for name, path in paths.items() if not find_weights(path)}, feeds[0], runtime)
    return [Candidate(name, path, agreements[name], times.get(name)) for name, path in paths.items()]


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Return the fastest that agrees with float32, or a smaller one as fast; without times the smallest.

    Raises:
        ValueError: If no precision that agrees with float32 fits into one file.
    """
    fitting = [each for each in candidates if each.agreement >= LEAST_AGREEMENT and each.is_one_file]
    if not fitting:
        refuse_size(candidates)
    timed = [each.milliseconds for each in fitting if each.milliseconds is not None]
    if len(timed) == len(fitting):
        fitting = [each for each in fitting if each.milliseconds <= NEGLIGIBLE * min(timed)]  # pyrefly: ignore
    return min(fitting, key=lambda each: each.megabytes)


def refuse_size(candidates: Sequence[Candidate]) -> NoReturn:
    """Refuse graphs that a browser cannot open.

    Raises:
        ValueError: Always.
    """
    sizes = ", ".join(f"{each.precision} {each.megabytes / 1e3:.1f} GB" for each in candidates)
    raise ValueError(
        f"`precision` must give weights of less than {EXTERNAL_DATA_BYTES / 1e9:.1f} GB, got {sizes}. Take int8 or a "
        "smaller checkpoint; if the text tower is the large part, leave words out (--no-words)."
    )


def _agreement(path: Path, feeds: Sequence[Feeds], expected: Sequence[list[Tensor]]) -> float:
    run, lowest = open_graph(path), 1.0
    for feed, wanted in zip(feeds, expected, strict=True):
        for given, output in zip(run(feed), wanted, strict=True):
            lowest = min(lowest, compare(given, output).mean_cosine)
    return lowest


def time_in_wasm(
    paths: Mapping[WebPrecision, Path], feed: Feeds, runtime: Mapping[str, Path]
) -> dict[WebPrecision, float]:
    """Return milliseconds of a pass in WebAssembly on one thread; nothing where Node.js is missing or fails."""
    node = shutil.which("node")
    build = BUILDS["wasm"]
    if node is None or any(name not in runtime for name in build.values()):
        return {}
    (name, tensor), *_ = feed.items()
    values = tensor.numpy()
    encoded = base64.b64encode(values.tobytes()).decode()
    asked = {
        "files": {role: str(runtime[file].resolve()) for role, file in build.items()},
        "graphs": {precision: str(path.resolve()) for precision, path in paths.items()},
        "input": {"name": name, "type": str(values.dtype), "dims": list(values.shape), "data": encoded},
    }
    script = Path(__file__).with_name("time_graphs.mjs")
    try:
        command = [node, str(script)]
        with raised_signals():
            done = subprocess.run(
                command, input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=TIMEOUT_S
            )
        return json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return {}


def describe(candidates: Sequence[Candidate], chosen: Candidate, title: str) -> str:
    """Return a table of the measurements."""
    lines = [f"{title:<28}{'MB':>8}{'cosine with fp32':>20}{'ms in WebAssembly':>20}"]
    for each in candidates:
        took = "not measured" if each.milliseconds is None else f"{each.milliseconds:.0f}"
        mark = "  <- chosen" if each is chosen else ""
        lines.append(f"{each.precision:<28}{each.megabytes:>8.1f}{each.agreement:>20.5f}{took:>20}{mark}")
    return "\n".join(lines)
