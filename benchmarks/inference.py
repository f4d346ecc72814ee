"""Times our networks beside their peers: random weights, equal shapes, calls in turns in one run.

    python -m benchmarks.inference [--preset radio_v2.5-b] [--sizes 224,512,1024] [--quick]
    python -m benchmarks.inference --device cuda --dtypes float32,bfloat16,float16

Ours runs eager, compiled, in windows and packed, beside transformers' native RADIO, timm's RADIO (its NaFlexViT) and
plain ViT, plain code, and transformers' DINOv3, SigLIP2 and SAM3 encoders. Ratios are medians over the rounds, with
quartiles. On a GPU also full batches, 2048 px, and the published shapes of `large.py`. Prints tables and writes them
with date, machine and versions to `benchmarks/results/`, with `--quick` to `runs/benchmarks-quick/`; the machine's
limits are measured in the same run. What dynamic int8 is worth is `benchmarks.int8`'s.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import transformers
from pydantic import model_validator

from benchmarks.contenders.registry import COMPILED, CONTENDERS, contenders_on
from benchmarks.contenders.shapes import Place
from benchmarks.data import find_photographs
from benchmarks.inference_parts.choices import measure_choices
from benchmarks.inference_parts.fidelity import measure_fidelity
from benchmarks.inference_parts.global_tokens import measure_global_tokens
from benchmarks.inference_parts.large import measure_large
from benchmarks.inference_parts.memory import measure_cold_start, measure_memory
from benchmarks.inference_parts.packed import measure_packed
from benchmarks.inference_parts.speed import full_batch, measure_speed
from benchmarks.inference_parts.windows import measure_windows
from benchmarks.measuring.limits import measure_limits
from benchmarks.measuring.results import report
from benchmarks.measuring.settings import NetworkSettings, check_sizes
from foundation.command_line import Command
from foundation.errors import check_choice
from foundation.fields import OneOf
from modeling_radio import RadioConfig


LARGEST_PX = 2048
PARTS = ("speed", "windows", "packed", "memory", "fidelity", "global_tokens", "choices", "large")
NUM_PHOTOGRAPHS = 16
QUICK_SECONDS = 1.0
SECONDS = {"cpu": 40.0, "cuda": 2.0}
"""Our choices: for the rounds of one size, in which all contenders take turns. On a CPU those are some fifteen at 224
px, where single ones are 5 % apart."""


class InferenceBenchmark(NetworkSettings):
    """What shall be timed.

    Attributes:
        contenders: Names of networks; all by default.
        parts: Of speed, windows, packed, memory, fidelity, global_tokens (RADIO1D), choices (what ours could do
            otherwise), and large, which is for GPUs.
        student: Folder of a trained student, of which fidelity is measured; without one that part is left out.
        photographs: Folder of JPEGs for it; by default the demo's packages.
        quick: Whether to look only: few rounds, no image above 512 px on a CPU, no 2048 px. Results go to
            runs/benchmarks-quick.
    """

    contenders: list[str] = list(CONTENDERS)
    parts: Annotated[list[str], OneOf(PARTS)] = list(PARTS)
    student: Path | None = None
    photographs: Path | None = None
    quick: bool = False

    @model_validator(mode="after")
    def _check(self) -> "InferenceBenchmark":
        for name in self.contenders:
            check_choice("contenders", name, list(CONTENDERS), error=self.error_class)
        return self


def run(settings: InferenceBenchmark) -> None:
    """Measure, print and write all parts."""
    settings.check_device()
    check_sizes(settings.preset, settings.sizes)
    transformers.utils.logging.disable_progress_bar()
    on_gpu = settings.device == "cuda"
    dtypes = settings.dtypes
    sizes = [size for size in sorted(settings.sizes) if not settings.quick or on_gpu or size <= 512]
    budget, rounds = (QUICK_SECONDS, 2) if settings.quick else (SECONDS[settings.device], 3)
    pace = {"budget_seconds": budget, "min_rounds": rounds}
    places = [Place(settings.device, getattr(torch, dtype)) for dtype in dtypes]
    limits = {place: measure_limits(place.device, place.dtype) for place in places}
    facts: dict[str, object] = {"GB/s": round(limits[places[0]].gigabytes, 1)}
    facts |= {f"{dtype}, GFLOP/s": round(limits[place].gflops) for dtype, place in zip(dtypes, places, strict=True)}

    def write(part: str, rows: list[dict[str, object]]) -> None:
        report(f"inference_{part}", settings.preset, rows, device=settings.device, facts=facts, is_quick=settings.quick)

    small = [size for size in sizes if size <= 512]
    timed = {
        "speed": lambda: _speed(settings, sizes, places, limits, pace),
        "windows": lambda: _windows(settings, sizes, places, pace),
        "packed": lambda: [row for place in places for row in measure_packed(settings.preset, place, **pace)],
        "global_tokens": lambda: measure_global_tokens(settings.preset, small, places[0], **pace),
        "choices": lambda: [row for place in places for row in measure_choices(settings.preset, small, place, **pace)],
    }
    for part in settings.parts:
        if part in timed:
            write(part, timed[part]())
        elif part == "memory":
            names = [name for name in contenders_on(settings.device, settings.contenders) if name != COMPILED]
            write(part, measure_memory(settings.preset, sizes, places[0], names))
            write("cold_start", measure_cold_start(settings.preset, places[0], 1 if settings.quick else 3))
        elif part == "fidelity" and settings.student is not None:
            photographs = find_photographs(settings.photographs, NUM_PHOTOGRAPHS)
            rows = measure_fidelity(settings.student, photographs, sizes, settings.device)
            name = settings.student.name
            report("inference_fidelity", name, rows, device=settings.device, is_quick=settings.quick)
        elif part == "large" and on_gpu:
            write(part, measure_large(Place("cuda", torch.bfloat16), limits[Place("cuda", torch.bfloat16)], **pace))


def _speed(settings, sizes, places, limits, pace) -> list[dict[str, object]]:
    """Return the rows of one image, and on a GPU of full batches, both up to 2048 px unless it is a quick look."""
    rows, patch_size = [], RadioConfig.from_preset(settings.preset).patch_size
    for place in places:
        options = {"names": contenders_on(place.device, settings.contenders), **pace}
        if place.device == "cuda":
            sizes = sizes if settings.quick else sorted({*sizes, LARGEST_PX})
            batches = {size: full_batch(size, patch_size) for size in sizes}
            rows += measure_speed(settings.preset, sizes, place, limits[place], batch_of=batches, **options)
        rows += measure_speed(settings.preset, sizes, place, limits[place], **options)
    return rows


def _windows(settings, sizes, places, pace) -> list[dict[str, object]]:
    """Return the rows of windows; at 2048 px only of the smallest, in bfloat16 where that is among the types."""
    rows, large = [], [size for size in sizes if size >= 512]
    for place in places:
        rows += measure_windows(settings.preset, large, place, **pace)
    if not settings.quick and torch.bfloat16 in {place.dtype for place in places}:
        place = Place(settings.device, torch.bfloat16)
        once = {"budget_seconds": 0.0, "min_rounds": 2, "share_rounds": 1}
        rows += measure_windows(settings.preset, [LARGEST_PX], place, windows=[8], **once)
    return rows


COMMAND = Command("benchmarks.inference", __doc__.partition("\n")[0], InferenceBenchmark)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
