"""Shared by all cases: settings, timing of calls and processes in turns, the machine's peak, files of results."""

import ctypes
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from modeling_radio import RadioConfig
from modeling_radio.checks_radio import check_multiple
from modeling_radio.core.files import write_text
from modeling_radio.core.machine import peak_memory_mb, processor_name, versions_of
from modeling_radio.core.settings import OneOf, Settings, require
from modeling_radio.core.tables import markdown
from modeling_radio.core.timing import Name


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "runs" / "benchmarks-quick"
"""Folder of the results of quick runs, which replace no careful ones."""
PACKAGES = ("torch", "torchvision", "transformers", "timm")
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""Sides of the matrices that measure the machine's peak. Our choice: large enough for full speed."""
PEAK_ROUNDS = 5
SECONDS = {"cpu": 40.0, "cuda": 2.0}
"""Time for the rounds of one size, in which all networks take turns. Our choice: some 15 rounds at 224 px on a CPU,
where single ones differ by 5 %."""
Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
Timing = dict[str, float]
"""Seconds of a step by part; "wall" is the whole step."""


class MeasuringSettings(Settings):
    """Settings that all cases have in common.

    Attributes:
        device: "cpu" or "cuda", the first GPU.
        quick: Take few rounds, small images and random weights. Results go to runs/benchmarks-quick.
        preset: Shape of the networks with random weights.
        sizes: Image sides in pixels.
        dtypes: Data types of the compared networks.
        photographs: Folder of JPEGs for `data`; None for the demo's packages.
        peer_python: Python with lightly-train and timm; None leaves out that trainer.
        against: Root of another checkout of this project for `checkouts`; None times the present one alone.
    """

    device: Annotated[str, OneOf(("cpu", "cuda"))] = "cpu"
    quick: bool = False
    preset: Annotated[str, OneOf(RadioConfig.presets)] = "radio_v2.5-b"
    sizes: list[int] = [224, 512, 1024]
    dtypes: Annotated[list[str], OneOf(("float32", "bfloat16", "float16"))] = ["float32", "bfloat16"]
    photographs: Path | None = None
    peer_python: str | None = None
    against: Path | None = None

    def check(self) -> None:
        """Refuse settings that this machine or the preset cannot have, before any long work.

        Raises:
            ValueError: If there is no such GPU, Python or checkout, or an image side that the preset cannot have.
        """
        require(self.device == "cpu" or torch.cuda.is_available(), "device", self.device, "'cpu': there is no GPU here")
        is_there = self.peer_python is None or Path(self.peer_python).is_file()
        require(is_there, "peer_python", self.peer_python, "the path of a Python that has lightly-train and timm")
        is_checkout = self.against is None or (self.against / "training/recipes/demo.yaml").is_file()
        require(is_checkout, "against", str(self.against), "the root of a checkout of this project")
        config = RadioConfig.from_preset(self.preset)
        for size in self.sizes:
            check_multiple("`sizes`", size, size, config.patch_size, config.largest_side)

    @property
    def on_gpu(self) -> bool:
        """True if networks run on a GPU."""
        return self.device == "cuda"

    @property
    def chosen_sizes(self) -> list[int]:
        """The image sides, ascending; in quick runs on a CPU those up to 512 pixels."""
        return [size for size in sorted(self.sizes) if not self.quick or self.on_gpu or size <= 512]

    @property
    def placements(self) -> "list[Placement]":
        """The device with each data type."""
        return [Placement(self.device, getattr(torch, dtype)) for dtype in self.dtypes]

    @property
    def pace(self) -> dict[str, Any]:
        """Options of `take_turns` for the rounds of one size."""
        seconds, rounds = (1.0, 2) if self.quick else (SECONDS[self.device], 3)
        return {"budget_seconds": seconds, "min_rounds": rounds, "device": self.device}


class Placement(NamedTuple):
    """Device and data type of a network."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def dtype_name(self) -> str:
        """Such as "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def images(self, size: int, batch: int = 1) -> torch.Tensor:
        """Return squares of random pixels, `(batch, 3, size, size)`."""
        return torch.rand(batch, 3, size, size, device=self.device).to(self.dtype)


class Spread(NamedTuple):
    """Median and quartiles of one number over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread_of(numbers: Sequence[float]) -> Spread:
    """Return the median and the quartiles of some numbers; one number is all three."""
    if len(numbers) == 1:
        return Spread(*3 * list(numbers))
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class Turns(Generic[Name]):
    """Times of calls that took turns.

    Attributes:
        seconds: By name the seconds of each round.
    """

    seconds: Mapping[Name, list[float]]

    def milliseconds(self, name: Name) -> float:
        """Return the median over the rounds, rounded to four digits."""
        return float(f"{1000 * statistics.median(self.seconds[name]):.4g}")

    def times_as_fast(self, name: Name, other: Name) -> Spread:
        """Return how many times as fast as another a call is, from the ratios of all rounds."""
        return spread_of([theirs / own for own, theirs in zip(self.seconds[name], self.seconds[other], strict=True)])


def take_turns(
    calls: Mapping[Name, Callable[[], Any]],
    *,
    min_rounds: int,
    budget_seconds: float = 0.0,
    device: str = "cpu",
    warm_up: bool = True,
) -> Turns[Name]:
    """Run calls one after the other, round after round, every other round in reverse. On a GPU each is waited for.

    Disturbances affect all calls alike, and ratios are taken within a round.

    Args:
        calls: Calls to time, by name.
        min_rounds: Least number of rounds.
        budget_seconds: Continue with further rounds until this time has passed.
        device: Device of the calls.
        warm_up: Whether to run a round first, which sets kernels up and does not count.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for call in calls.values() if warm_up else ():
        call()
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    order, began, rounds = list(calls), time.perf_counter(), 0
    while rounds < min_rounds or time.perf_counter() - began < budget_seconds:
        for name in order:
            wait()
            start = time.perf_counter()
            calls[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)
        order.reverse()
        rounds += 1
    return Turns(seconds)


def peak_mb_of(call: Callable[[], object], device: str = "cpu") -> float:
    """Return the peak memory during a call in MB: of this process, including what it held before, or of the GPU.

    The process's needs Linux.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 1e6
    ctypes.CDLL(None).malloc_trim(0)  # returns free memory to the system
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to the present use; proc(5)
    call()
    return peak_memory_mb()


class StepProcess:
    """A process that reads lines "NUM_STEPS" and prints a line of JSON for each: seconds per step by part.

    It prints one line of JSON first, when it is ready. See `benchmarks/steps.py`.

    Args:
        name: Name in errors.
        command: Command of the process.
        folder: Its working directory.
        **environment: Variables besides those of this process.

    Attributes:
        first_reply: Its first line.

    Raises:
        RuntimeError: If it ends too early; its output has the reason.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, **environment: str) -> None:
        self.name = name
        variables = {"OMP_WAIT_POLICY": "passive", **os.environ, **environment}
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        self.first_reply = self._read_reply()

    def time(self, num_steps: int) -> Timing:
        """Run steps; return seconds per step by part."""
        assert self._process.stdin is not None
        print(num_steps, file=self._process.stdin, flush=True)
        return self._read_reply()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read_reply(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The steps of {self.name!r} ended with status {self._process.wait()}; see above.")
        return json.loads(line)


def take_step_turns(
    processes: Mapping[str, StepProcess], rounds: int, num_steps: int, stays: str | None = None
) -> dict[str, list[Timing]]:
    """Let warm processes run steps in turns, and end them; return the timings of every round by name.

    Args:
        processes: Processes by name.
        rounds: Turns of each.
        num_steps: Steps of a turn.
        stays: Name of one that is not ended.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in processes}
    for _ in tqdm(range(rounds), desc=list(processes)[-1]):
        for name, process in processes.items():
            timings[name].append(process.time(num_steps))
    for name, process in processes.items():
        if name != stays:
            process.close()
    return timings


@torch.inference_mode()
def measure_peak(placement: Placement, side: int | None = None) -> float:
    """Return the speed of a square matrix product, in 1e9 floating-point operations a second: this machine's peak.

    Args:
        placement: Device and type of the matrices.
        side: Side of the matrices; by default `PRODUCT_SIDE`.
    """
    side = side or PRODUCT_SIDE[placement.device]
    first, second = (torch.randn(side, side, device=placement.device).to(placement.dtype) for _ in range(2))
    turns = take_turns({"product": lambda: first @ second}, min_rounds=PEAK_ROUNDS, device=placement.device)
    return 2 * side**3 / min(turns.seconds["product"]) / 1e9


def count_flops(call: Callable[[], object]) -> float:
    """Return the floating-point operations of the products in a call, two for a multiplication and an addition."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()  # the counter does not count fused attention of CPUs
    return float(counter.get_total_flops())


def describe_machine(device: str = "cpu") -> Row:
    """Return date, processor, threads and versions of this run."""
    info = Path("/proc/cpuinfo")
    tiles = " with AMX" if info.is_file() and "amx_tile" in info.read_text() else ""
    architecture = "" if platform.machine() == "x86_64" else f" ({platform.machine()})"
    machine: Row = {
        "date": date.today().isoformat(),
        "processor": f"{os.cpu_count()} x {processor_name()}{tiles}{architecture}",
        "threads": torch.get_num_threads(),
        **versions_of(PACKAGES),
    }
    if device == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return machine


class Result(NamedTuple):
    """One table of results: a line of `benchmarks/results/CASE.jsonl`.

    Attributes:
        table: Its name.
        subject: Measured object, such as the name of a preset.
        machine: Machine and versions, see `describe_machine`.
        facts: Facts about all rows, such as the measured peak of the machine.
        rows: The numbers. Rows with `is_gone` are of options that no longer exist.
    """

    table: str
    subject: str
    machine: Mapping[str, Any]
    facts: Mapping[str, Any]
    rows: Rows

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for results of the same table, subject and machine, of which the newest replaces the others."""
        return self.table, self.subject, self.machine["processor"], self.machine.get("gpu")


def load_results(path: Path) -> list[Result]:
    """Return the results in a file, in their order; none without a file."""
    if not path.is_file():
        return []
    return [Result(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def report(
    settings: MeasuringSettings,
    case: str,
    table: str,
    subject: str,
    rows: Rows,
    facts: Mapping[str, object] | None = None,
    device: str = "cpu",
) -> Path:
    """Print rows as a table and store them in the file of the case; return the file.

    An older result of the same table, subject and machine is replaced. Rows may have different columns; the table has
    all of them, in the order in which they appear.
    """
    result = Result(table, subject, describe_machine(device), dict(facts or {}), rows)
    path = (QUICK_RESULTS if settings.quick else RESULTS) / f"{case}.jsonl"
    results = [*(other for other in load_results(path) if other.key != result.key), result]
    write_text(path, "".join(f"{json.dumps(each._asdict())}\n" for each in results))
    print(table_of(rows), json.dumps({**result.machine, **result.facts}), f"Wrote {path}.", sep="\n\n")
    return path


def table_of(rows: Rows) -> str:
    """Return rows as a table in Markdown, with an empty cell where a row lacks a column."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return markdown(columns, [[str(row.get(column, "")) for column in columns] for row in rows])
