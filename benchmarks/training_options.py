"""Times what each option of a recipe adds to the demo's distillation step, in time and in memory.

    python -m benchmarks.training_options [--rounds 5] [--steps 2] [--options mesa,damp]

Each option runs in a process of its own, one thread, beside one of the same recipe without it, and both take turns of a
few steps. "more CPU" is the median over the rounds of what a step takes more than the plain one in the same round;
"memory" is the most that the process held in a step, teachers included. Images have 128 px, a step's 64 are one pass,
banks are full and windows are in every step. Prints a table and writes it with date, machine and versions to
`benchmarks/results/`. For Linux.
"""

import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from tqdm import tqdm

from benchmarks.measuring.new_process import peak_mb_of
from benchmarks.measuring.results import report
from benchmarks.measuring.steps import StepTimer
from foundation.command_line import Command
from foundation.errors import check_choice
from foundation.settings import Settings
from training.distillation.memory import keep_freed_memory
from training.distillation.trainer import Distiller
from training.recipe import load_recipe
from training.teachers.run_modes.featsharp import FeatSharp, UpsamplerConfig, save_upsampler


WARM_UP_STEPS = 2
Timing = dict[str, float]

WEIGHED = "balancing={{method: {}, start_step: 0, period_steps: 1, ramp_steps: 0}}"
SMALL_TEACHER = {"run_mode": "fixed", "input_size_px": 64}  # 4 cells a side; the student has 8


class Group(NamedTuple):
    """Options that are compared with the same plain step.

    Attributes:
        plain: What the plain step changes in the demo's recipe.
        options: By name what each changes besides.
    """

    plain: Sequence[str]
    options: Mapping[str, Sequence[str]]


def groups(upsampler: Path) -> dict[str, Group]:
    """Return all options by the name of the step that they are compared with.

    Args:
        upsampler: Folder of one for EfficientNet, see `save_untrained_upsampler`.
    """
    methods = ("adaptive", "teacher_dropping")
    schemes = ("strict", "soft")
    teacher = "teachers.efficientnet-lite0"
    return {
        "plain": Group(
            [],
            {
                **{f"balancing {method}": [WEIGHED.format(method)] for method in methods},
                "contrastive": ["contrastive.weight=0.1"],
                **{f"taps {scheme}": [f"taps={{scheme: {scheme}, decay_steps: 0}}"] for scheme in schemes},
                "mesa": ["mesa.weight=0.5"],
                "damp": ["damp.sigma=0.1"],
                "spectral": ["spectral.is_used=true"],
            },
        ),
        "plain, two global blocks": Group(
            ["student.config.vitdet_num_global=2"],
            {"windows of 4": ["partitions.low.vitdet_windows=[4]", "partitions.low.vitdet_probability=1"]},
        ),
        "teachers online, EfficientNet at 64 px, bilinear": Group(
            ["views.teachers=online", *(f"{teacher}.{key}={value}" for key, value in SMALL_TEACHER.items())],
            {
                "tiles": [f"{teacher}.upsample=tiles"],
                "featsharp": [f"{teacher}={{upsample: featsharp, upsampler: {str(upsampler)!r}}}"],
            },
        ),
    }


OPTIONS = [name for group in groups(Path()).values() for name in group.options]


def save_untrained_upsampler(folder: Path) -> None:
    """Write FeatSharp for the small EfficientNet as it is before training: it costs what a trained one does."""
    size = SMALL_TEACHER["input_size_px"]
    save_upsampler(
        FeatSharp(UpsamplerConfig(kind="efficientnet-lite0", feature_dim=112, input_size_px=size, grid=size // 16)),
        folder,
    )


def serve(changes: Sequence[str], folder: Path, connection: Connection) -> None:
    """In a process of its own: build a run, warm up, say how much memory a step takes, and time steps when asked."""
    torch.set_num_threads(1)
    keep_freed_memory()
    distiller = Distiller(load_recipe("demo", changes), folder)
    distiller._build()
    if distiller.contrasts is not None:
        for bank in distiller.contrasts.banks.values():
            bank.add(torch.randn_like(bank.rows))
    timer = StepTimer(distiller)
    timer.run(WARM_UP_STEPS)
    connection.send(peak_mb_of(partial(timer.run, 1)))
    while num_steps := connection.recv():
        connection.send(timer.run(num_steps))


class Worker:
    """A process that runs steps of a recipe when asked.

    Args:
        changes: Of the demo's recipe.
        folder: Of its run.

    Attributes:
        memory: The most that a step holds, in MB.
    """

    def __init__(self, changes: Sequence[str], folder: Path) -> None:
        fork = multiprocessing.get_context("fork")  # what is imported is shared, and counts for all alike
        self._connection, theirs = fork.Pipe()
        self._process = fork.Process(target=serve, args=(changes, folder, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is noticed
        self.memory: float = self._connection.recv()

    def time(self, num_steps: int) -> Timing:
        """Return seconds per step, as `StepTimer.run`."""
        self._connection.send(num_steps)
        return self._connection.recv()

    def close(self) -> None:
        """End the process."""
        self._connection.send(0)
        self._process.join()


def measure(settings: "OptionsBenchmark") -> list[dict[str, object]]:
    """Return one row for each plain step and each option."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        upsampler = Path(scratch, "upsampler")
        save_untrained_upsampler(upsampler)
        num_steps = WARM_UP_STEPS + 1 + settings.rounds * settings.steps * (len(settings.options) + 1)
        common = [
            f"data={{num_images: {settings.num_images}, num_workers: 0}}",
            f"views.cache_dir={scratch}/cache",
            f"schedule={{num_steps: {num_steps}, warmup_steps: 1}}",
            "partitions.low.sizes_px=[128]",
            "partitions.low.accumulation_steps=1",
            "student.passes_at_once=1",
            "standardization.calibration_steps=2",
        ]
        bar = tqdm(total=len(settings.options), desc="options")
        for name, group in groups(upsampler).items():
            chosen = {option: group.options[option] for option in settings.options if option in group.options}
            if not chosen:
                continue
            plain = Worker([*common, *group.plain], Path(scratch, "plain", name))
            timings, memory = [], {name: plain.memory}
            for option, changes in chosen.items():
                worker = Worker([*common, *group.plain, *changes], Path(scratch, option))
                turns = [(plain.time(settings.steps), worker.time(settings.steps)) for _ in range(settings.rounds)]
                worker.close()
                timings.append((option, turns))
                memory[option] = worker.memory
                bar.update()
            plain.close()
            rows += summarize(name, timings, memory)
    return rows


def summarize(
    plain: str, timings: Sequence[tuple[str, Sequence[tuple[Timing, Timing]]]], memory: Mapping[str, float]
) -> list[dict[str, object]]:
    """Return the plain step's row, and one for each option.

    Args:
        plain: Name of the plain step.
        timings: Options, and for each round the timing of the plain step and the option's.
        memory: Of all of them by name, in MB.
    """
    of_plain = [first for _, turns in timings for first, _ in turns]
    rows: list[dict[str, object]] = [_row(plain, of_plain, memory[plain])]
    for option, turns in timings:
        more = statistics.median(100 * (second["cpu"] / first["cpu"] - 1) for first, second in turns)
        row = _row(option, [second for _, second in turns], memory[option])
        rows.append({**row, "more CPU": f"{more:+.0f} %", "more memory": f"{memory[option] - memory[plain]:+.0f} MB"})
    return rows


def _row(step: str, timings: Sequence[Timing], memory: float) -> dict[str, object]:
    wall, cpu = (round(1000 * statistics.median(timing[name] for timing in timings)) for name in ("wall", "cpu"))
    row = {"step": step, "wall, ms": wall, "CPU, ms": cpu, "memory, MB": round(memory)}
    return {**row, "more CPU": "", "more memory": ""}


class OptionsBenchmark(Settings):
    """What shall be timed.

    Attributes:
        options: Names of options; all by default.
        rounds: Turns of each option and the plain step beside it.
        steps: Steps of a turn.
        num_images: Images that the teachers answer before.
    """

    options: list[str] = OPTIONS
    rounds: int = Field(5, gt=0)
    steps: int = Field(2, gt=0)
    num_images: int = Field(256, gt=63)

    @model_validator(mode="after")
    def _check(self) -> "OptionsBenchmark":
        for option in self.options:
            check_choice("options", option, OPTIONS, error=self.error_class)
        return self


COMMAND = Command("benchmarks.training_options", __doc__.partition("\n")[0], OptionsBenchmark)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    torch.set_num_threads(1)  # as its workers do, so that the result says so
    return COMMAND.run(lambda settings: report("training_options", "demo", measure(settings)), arguments)


if __name__ == "__main__":
    sys.exit(main())
