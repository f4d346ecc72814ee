"""Shows how far the predictions of `choose_window_size` are from measured times.

    python -m benchmarks.window_choice [--preset radio_v2.5-b] [--sizes 512,1024] [--dtypes float32,bfloat16]

For each size and dtype every window is timed beside global attention in alternating calls. Prints a table of
predicted and measured milliseconds and writes it with date, machine and versions to `benchmarks/results/`.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from tqdm import tqdm

from benchmarks.compare_native import time_variants
from benchmarks.measuring.results import report
from benchmarks.measuring.settings import NetworkSettings, check_sizes
from foundation.command_line import Command
from modeling_radio import RadioConfig, RadioModel


WINDOWS = (None, 32, 16, 8)  # global attention and three of the trained sizes


def measure(preset: str, sizes: list[int], dtypes: list[str]) -> list[dict[str, object]]:
    """Return one row per dtype, size and window: predicted and measured milliseconds and their ratio."""
    rows = []
    for dtype in dtypes:
        torch_dtype = getattr(torch, dtype)
        model = RadioModel(RadioConfig.from_preset(preset)).to(torch_dtype).eval()
        for size in tqdm(sizes, desc=dtype):
            grid = size // model.patch_size
            windows = [window for window in WINDOWS if window is None or window < grid]
            predicted = {window: model.predict_window_cost(size, size, window) for window in windows}
            calls: dict[str, Callable] = {
                str(window or "global"): partial(model, window_size=window or "global") for window in windows
            }
            seconds = time_variants(calls, torch.rand(1, 3, size, size, dtype=torch_dtype))
            for window in windows:
                name = str(window or "global")
                rows.append(
                    {
                        "dtype": dtype,
                        "size_px": size,
                        "window": name,
                        "predicted, ms": round(predicted[window].latency_ms, 1),
                        "measured, ms": round(1000 * seconds[name], 1),
                        "predicted / measured": round(predicted[window].latency_ms / (1000 * seconds[name]), 2),
                    }
                )
    return rows


class WindowSettings(NetworkSettings):
    """As of the comparison with the native model."""

    sizes: list[int] = [512, 1024]


COMMAND = Command("benchmarks.window_choice", __doc__.partition("\n")[0], WindowSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments)


def _measure_and_report(settings: WindowSettings) -> None:
    check_sizes(settings.preset, settings.sizes)
    report("window_choice", settings.preset, measure(settings.preset, settings.sizes, settings.dtypes))


if __name__ == "__main__":
    sys.exit(main())
