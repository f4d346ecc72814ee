"""One rank's real training step of a large recipe, timed on one GPU beside the seconds and the starts of `radio plan`.

    python -m benchmarks.planned --device cuda [--quick]

Networks have their published shape and random weights, pictures are drawn, and all views are cut before the first step:
nothing is downloaded, and no step waits for images. There is one process, and so no exchange of gradients. Each row
runs in a process of its own and is written when it is measured; a row that fails says why, and the others go on.
`--quick` takes narrow networks, small images, few steps and the first row alone, so that a CPU needs little.

The plan's seconds are those of its two assumptions, the share of the card's peak and the microseconds of a start,
without exchange and waiting. On a card whose peak is not known, and on a CPU, the peak is that of a matrix product
measured here. "Operators" are counted as in `benchmarks.kernels`, "launched" are the CUDA runtime's launches of
kernels by PyTorch's profiler.
"""

import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.kernels import CARD, StartCounter, build_rank, last_stage, narrowed, write_images
from benchmarks.measuring import MeasuringSettings, Placement, Row, measure_peak, report
from benchmarks.steps import GPU_MEMORY, StepTimer
from modeling_radio import RadioConfig
from modeling_radio.core.command_line import Command
from modeling_radio.core.errors import UserError
from modeling_radio.training.distillation.throughput import card_of
from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.plan import DEFAULT_IMAGE_KB, DEFAULT_MFU, DEFAULT_START_US
from modeling_radio.training.planning.costs import Card, Networks
from modeling_radio.training.planning.memory import GIB, fit_accumulation
from modeling_radio.training.planning.plan import Plan
from modeling_radio.training.planning.simulation import Speed
from modeling_radio.training.recipes.recipe import Recipe, load_recipe


WARM_UP_STEPS, TIMED_STEPS = 3, 5
"""Our choice. Steps after the timed ones are counted and profiled."""
NUM_WORKERS = {"cpu": 1, "cuda": 8}
"""Processes that cut the views before the first step."""
SMALL = (
    "partitions.low={sizes_px: [64, 96], token_budget: 4096, vitdet_windows: [2]}",
    "partitions.high={sizes_px: [128], token_budget: 4096, vitdet_windows: [4]}",
    "student.config={num_hidden_layers: 4, vitdet_num_global: 2}",
)
"""Changes of quick runs."""
SIDE_ON_CPU = 512
"""Side of the matrices that measure a CPU's peak, which only a trial needs. Our choice."""
FAILED = "failed"


class Variant(NamedTuple):
    """A step that is measured.

    Attributes:
        recipe: Name of the recipe.
        num_ranks: GPUs of the whole run, of which the first one's share is computed.
    """

    recipe: str
    num_ranks: int


VARIANTS = [Variant("radio_s", 64), Variant("radio_s", 8), Variant("c_radio_v4_h", 64)]


def run(settings: MeasuringSettings) -> None:
    """Measure and report all variants.

    Raises:
        UserError: In the end, if some failed.
    """
    settings.check()
    rows: list[Row] = []
    for variant in VARIANTS[:1] if settings.quick else VARIANTS:
        rows.append(_in_new_process(variant, settings))
        report(settings, "planned", "step", "one step of the last stage", rows, device=settings.device)
    failed = [f"{row['recipe']} on {row['GPUs']} GPUs" for row in rows if FAILED in row]
    if failed:
        raise UserError(f"{'; '.join(failed)} failed; the table tells why. All others are written.")


def _in_new_process(variant: Variant, settings: MeasuringSettings) -> Row:
    """Return the row of a variant, measured in a process that gives all memory back."""
    row: Row = {"recipe": variant.recipe, "GPUs": variant.num_ranks}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        measured = pool.submit(measure, variant, settings.device, settings.quick)
        error = measured.exception()  # waits
    return row | ({FAILED: f"{type(error).__name__}: {error}".splitlines()[0]} if error else measured.result())


def measure(variant: Variant, device: str, is_small: bool) -> Row:
    """Return the measured and the planned numbers of a variant's step.

    Args:
        variant: The variant.
        device: "cpu" or "cuda".
        is_small: Whether networks are narrow and images small.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_images(folder / "images")
        recipe = recipe_of(variant, folder, device, is_small)
        networks = Networks(recipe)
        operations = networks.operations(recipe)
        card = card_of(torch.device(device)) or _measured_card(device)
        stage = fit_accumulation(networks, recipe, variant.num_ranks, card.memory_gib, operations)
        distiller = Distiller(stage, folder / "run", device="cpu" if device == "cpu" else None)
        build_rank(distiller, variant.num_ranks, networks.student.patch_size, operations)
        _read_ahead(distiller.parts.source)
        timer = StepTimer(distiller)
        timer.run(1 if is_small else WARM_UP_STEPS)
        timings = [timer.run(1) for _ in range(1 if is_small else TIMED_STEPS)]
        row: Row = {"step, ms": 1000 * statistics.median(timing["wall"] for timing in timings)}
        plan = Plan(stage, variant.num_ranks, networks, card)
        speed = Speed(card, DEFAULT_MFU, DEFAULT_IMAGE_KB, DEFAULT_START_US)
        time = plan.step_time(stage, speed)._replace(waiting=0.0, exchange=0.0, data=0.0)
        row |= {"plan, ms": 1000 * time.total, "plan's GPU, ms": 1000 * time.computed}
        row |= {"plan's starts, ms": 1000 * time.starts}
        simulated = plan.simulated[stage.name]
        flops = sum(simulated.flops.values())
        row |= {"TFLOP": flops / 1e12, "share of peak": 1000 * flops / row["step, ms"] / card.peak_flops}
        row |= {"starts by plan": simulated.starts}
        with StartCounter() as counter:
            timer.run(1)
        row |= {"operators": counter.starts.total()}
        if device == "cuda":
            launched = _launches(partial(timer.run, 1))
            row |= {"launched": launched, "us of a start, at most": 1000 * row["step, ms"] / launched}
            memory = plan.memory().total(is_checkpointed=stage.student.gradient_checkpointing)
            row |= {"memory, GiB": 1e6 * timings[-1][GPU_MEMORY] / GIB, "plan's memory, GiB": memory / GIB}
        return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def recipe_of(variant: Variant, folder: Path, device: str, is_small: bool) -> Recipe:
    """Return the last stage of a variant's recipe with random teachers.

    Args:
        variant: The variant.
        folder: Folder with the images; gets configurations of narrow teachers.
        device: See `measure`.
        is_small: See `measure`.
    """
    changes = [f"data.source={folder / 'images'}", *(SMALL if is_small else ())]
    stage = last_stage(load_recipe(variant.recipe, changes))
    num_steps = WARM_UP_STEPS + TIMED_STEPS + 2  # one is counted and one profiled
    stage = stage.replace(
        schedule=stage.schedule.replace(num_steps=num_steps),
        data=stage.data.replace(num_workers=NUM_WORKERS[device]),
    )
    if is_small:
        assert stage.student.preset is not None
        return narrowed(stage, RadioConfig.from_preset(stage.student.preset).num_attention_heads, folder)
    teachers = [entry.replace(options={**entry.options, "weights": "random"}) for entry in stage.teachers]
    return stage.replace(teachers=teachers)


def _measured_card(device: str) -> Card:
    """Return a card with the speed of a matrix product measured here, for want of a data sheet."""
    gib = torch.cuda.get_device_properties(0).total_memory / GIB if device == "cuda" else CARD.memory_gib
    side = None if device == "cuda" else SIDE_ON_CPU
    return Card("measured", 1e9 * measure_peak(Placement(device, torch.bfloat16), side), gib, "measured here")


def _read_ahead(source: Any) -> None:
    """Let the first step wait for the views of all steps."""
    views: Callable[..., Iterator[Any]] = source.views.views
    source.views.views = lambda *arguments: iter(list(views(*arguments)))


def _launches(call: Callable[[], object]) -> int:
    """Return the launches of kernels in a call, graphs and memory copies aside."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    return sum(event.count for event in profiler.key_averages() if "LaunchKernel" in event.key)


COMMAND = Command("benchmarks.planned", __doc__.partition("\n")[0], MeasuringSettings)


main = partial(COMMAND.run, run, extra="dev")


if __name__ == "__main__":
    sys.exit(main())
