"""Times our RadioModel beside transformers' native one: equal weights, one run, alternating calls.

    python -m benchmarks.compare_native [--preset radio_v2.5-b] [--sizes 224,512,1024] [--dtypes float32,bfloat16]

Prints a table and writes it with date, machine and versions to `benchmarks/results/`. Peak memory is that of a new
process that loads one model and runs one image.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm
from transformers.models.radio import RadioModel as NativeRadioModel

from benchmarks.measuring.results import report
from benchmarks.measuring.settings import NetworkSettings, check_sizes
from foundation.command_line import Command
from foundation.machine.timing import fastest_seconds
from modeling_radio import RadioConfig, RadioModel


WINDOW_SIZE = 8
VARIANTS = ("native", "ours", f"ours, window {WINDOW_SIZE}")
SECONDS_PER_CASE = 8.0  # our choice: enough alternating rounds for a stable minimum at every size
MIN_ROUNDS = 3


def build_call(variant: str, folder: str, dtype: torch.dtype) -> Callable[[Tensor], nn.Module]:
    """Return a function that runs one image through a variant loaded from a checkpoint folder."""
    if variant == "native":
        return NativeRadioModel.from_pretrained(folder, dtype=dtype).eval()
    model = RadioModel.from_pretrained(folder, dtype=dtype).eval()
    window = "global" if variant == "ours" else WINDOW_SIZE
    return lambda image: model(image, window_size=window)


@torch.inference_mode()
def time_variants(calls: dict[str, Callable], image: Tensor) -> dict[str, float]:
    """Return the seconds of each variant's fastest call with one image."""
    runs = {variant: partial(call, image) for variant, call in calls.items()}
    return fastest_seconds(runs, min_rounds=MIN_ROUNDS, budget_seconds=SECONDS_PER_CASE)


def peak_memory_gib(variant: str, folder: str, size: int, dtype: str) -> float:
    """Return the peak resident memory of a new process that runs one image."""
    program = "import sys; from benchmarks.compare_native import print_own_peak; print_own_peak(*sys.argv[1:])"
    command = [sys.executable, "-c", program, variant, folder, str(size), dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def print_own_peak(variant: str, folder: str, size: str, dtype: str) -> None:
    """Run one image and print this process's peak resident memory in GiB."""
    call = build_call(variant, folder, getattr(torch, dtype))
    with torch.inference_mode():
        call(torch.rand(1, 3, int(size), int(size), dtype=getattr(torch, dtype)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def measure(preset: str, sizes: list[int], dtypes: list[str]) -> list[dict[str, object]]:
    """Return one row per size and dtype: milliseconds, ratios to native and peak memory of each variant."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        RadioModel(RadioConfig.from_preset(preset)).save_pretrained(folder)
        cases = [(dtype, size) for dtype in dtypes for size in sizes]
        for dtype, size in tqdm(cases, desc="cases"):
            calls = {variant: build_call(variant, folder, getattr(torch, dtype)) for variant in VARIANTS}
            seconds = time_variants(calls, torch.rand(1, 3, size, size, dtype=getattr(torch, dtype)))
            row: dict[str, object] = {"dtype": dtype, "size_px": size}
            for variant in VARIANTS:
                row[f"{variant}, ms"] = round(1000 * seconds[variant], 1)
                row[f"{variant}, GiB"] = round(peak_memory_gib(variant, folder, size, dtype), 2)
            for variant in VARIANTS[1:]:
                row[f"{variant}, times as fast as native"] = round(seconds["native"] / seconds[variant], 2)
            rows.append(row)
    return rows


COMMAND = Command("benchmarks.compare_native", __doc__.partition("\n")[0], NetworkSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments)


def _measure_and_report(settings: NetworkSettings) -> None:
    check_sizes(settings.preset, settings.sizes)
    transformers.utils.logging.disable_progress_bar()
    rows = measure(settings.preset, settings.sizes, settings.dtypes)
    report("compare_native", settings.preset, rows)


if __name__ == "__main__":
    sys.exit(main())
