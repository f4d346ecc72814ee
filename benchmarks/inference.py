"""Our network beside its peers, one image at a time: how fast, and in how much memory.

All have random weights and equal shapes, and take turns. On a GPU full batches and 2048 px are timed besides.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from tqdm import tqdm

from benchmarks.measuring import (
    ROOT,
    MeasuringSettings,
    Place,
    Row,
    Turns,
    count_flops,
    measure_peak,
    peak_mb_of,
    report,
    spread_of,
    take_turns,
)
from benchmarks.networks import COMPILED, EQUAL_WORK, NATIVE, NETWORKS, OURS, PREPACKED, Encode, names_on
from modeling_radio import RadioConfig


FULL_BATCH_TOKENS = 2**15
"""Our choice: patches of a full batch on a GPU, 32 images of 512 px, which keep an H100 busy in any of its parts."""
LARGEST_PX = 2048
LARGEST_WARMED_UP = 512
"""Our choice: at the next size a round of all networks takes a minute on a CPU."""
UNMEASURED = (COMPILED, PREPACKED)
"""Whose memory is that of ours, and of ours with its weights twice."""
SMALL = "radio-test"
"""Runs first, so that what the packages themselves hold does not count as memory of a network."""


def run(settings: MeasuringSettings) -> None:
    """Measure and report speed, then memory in the first data type."""
    peaks = {place: measure_peak(place) for place in settings.places}
    facts = {f"{place.dtype_name}, GFLOP/s": round(peak) for place, peak in peaks.items()}
    rows = []
    for place, peak in peaks.items():
        sizes = settings.chosen_sizes
        if settings.on_gpu:
            sizes = sizes if settings.quick else sorted({*sizes, LARGEST_PX})
            patch_size = RadioConfig.from_preset(settings.preset).patch_size
            batches = {size: full_batch(size, patch_size) for size in sizes}
            rows += measure_speed(settings.preset, sizes, place, peak, settings.pace, batches)
        rows += measure_speed(settings.preset, sizes, place, peak, settings.pace)
    report(settings, "inference", "speed", settings.preset, rows, facts, settings.device)
    rows = measure_memory(settings.preset, settings.chosen_sizes, settings.places[0])
    report(settings, "inference", "memory", settings.preset, rows, device=settings.device)


def needs_warm_up(size: int, place: Place) -> bool:
    """Return whether a round before the first is worth its time: above some size on a CPU setting up is nothing."""
    return place.device != "cpu" or size <= LARGEST_WARMED_UP


def full_batch(size: int, patch_size: int) -> int:
    """Return how many images of a size make a full batch."""
    return max(1, FULL_BATCH_TOKENS // (size // patch_size) ** 2)


@torch.inference_mode()
def measure_speed(
    preset: str,
    sizes: Sequence[int],
    place: Place,
    peak: float,
    pace: Mapping[str, object],
    batch_of: Mapping[int, int] | None = None,
) -> list[Row]:
    """Return one row for each size and network.

    Args:
        preset: Shape of all networks.
        sizes: Image sides in pixels, ascending.
        place: Device and data type.
        peak: Of the machine in that type, 1e9 operations a second.
        pace: Options of `take_turns`.
        batch_of: Images of a call by size; one by default.
    """
    config, rows = RadioConfig.from_preset(preset), []
    kept: dict[str, Encode] = {}
    for size in tqdm(sizes, desc=f"speed, {place.dtype_name}"):
        for name in names_on(place.device):
            if name not in kept or NETWORKS[name].by_size:
                kept[name] = NETWORKS[name].build(config, place, size)
        batch = (batch_of or {}).get(size, 1)
        images = place.images(size, batch)
        calls = {name: partial(encode, images) for name, encode in kept.items()}
        counted = [name for name in calls if NETWORKS[name].counted_as is None]
        one = place.images(size)
        flops = {name: batch * count_flops(partial(kept[name], one)) for name in counted}
        turns = take_turns(calls, **pace, warm_up=needs_warm_up(size, place))
        rows += rows_of(size, batch, place, turns, flops, peak)
    add_exponents(rows, config)
    return rows


def rows_of(
    size: int, batch: int, place: Place, turns: Turns[str], flops: Mapping[str, float], peak: float
) -> list[Row]:
    """Return what follows from the times of one size, and the operations of each network that is counted."""
    rows: list[Row] = []
    for name, seconds in turns.seconds.items():
        operations, taken = flops[NETWORKS[name].counted_as or name], spread_of(seconds)
        row: Row = {"dtype": place.dtype_name, "size_px": size, "batch": batch, "contender": name}
        row |= {"ms": _digits(1000 * taken.median)}
        row |= {"ms, quartiles": f"{_digits(1000 * taken.low)} to {_digits(1000 * taken.high)}"}
        row |= {"images/s": _digits(batch / taken.median)}
        row |= {"times as fast as native": str(turns.times_as_fast(name, NATIVE))}
        row |= {"GFLOP": _digits(operations / 1e9)}
        rows.append(row | {"share of peak": _digits(operations / taken.median / 1e9 / peak)})
    others = [name for name in EQUAL_WORK if name in turns.seconds and not name.startswith(OURS)]
    best = min(others, key=lambda name: spread_of(turns.seconds[name]).median)
    rows[0] |= {"best of equal work": best, "times as fast as that": str(turns.times_as_fast(OURS, best))}
    return rows


def add_exponents(rows: Sequence[Row], config: RadioConfig) -> None:
    """Add to each row by what power of the tokens the time grew since the next smaller size of the same network."""
    before: dict[object, Row] = {}
    for row in rows:
        if row["contender"] in before and row["batch"] == before[row["contender"]]["batch"]:
            smaller = before[row["contender"]]
            tokens = [config.num_prefix_tokens + (each["size_px"] // config.patch_size) ** 2 for each in (row, smaller)]
            row["exponent"] = round(math.log(row["ms"] / smaller["ms"]) / math.log(tokens[0] / tokens[1]), 2)
        before[row["contender"]] = row


def measure_memory(preset: str, sizes: Sequence[int], place: Place) -> list[Row]:
    """Return one row for each network: MB of weights and activations at their most while one image runs, by size.

    Each is measured in a process of its own.
    """
    rows = []
    for name in tqdm([name for name in names_on(place.device) if name not in UNMEASURED], desc="memory"):
        words = [name, preset, place.device, place.dtype_name, *map(str, sizes)]
        command = [sys.executable, "-m", "benchmarks.inference", *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        peaks = json.loads(done.stdout.splitlines()[-1])
        row: Row = {"contender": name, "dtype": place.dtype_name}
        rows.append(row | {f"{size} px, MB": round(peak) for size, peak in zip(sizes, peaks, strict=True)})
    return rows


@torch.inference_mode()
def memory_of(name: str, preset: str, place: Place, sizes: Sequence[int]) -> list[float]:
    """In a new process: return the MB that one image of each size takes at its most, weights included."""
    network, config = NETWORKS[name], RadioConfig.from_preset(preset)
    network.build(RadioConfig.from_preset(SMALL), place, 64)(place.images(64))
    before, peaks, encode = peak_mb_of(lambda: None, place.device), [], None
    for size in sizes:
        if encode is None or network.by_size:
            encode = None  # so that two are never held
            encode = network.build(config, place, size)
        peaks.append(peak_mb_of(partial(encode, place.images(size)), place.device) - before)
    return peaks


def _digits(number: float) -> float:
    return float(f"{number:.3g}")


if __name__ == "__main__":
    name, preset, device, dtype, *sizes = sys.argv[1:]
    print(json.dumps(memory_of(name, preset, Place(device, getattr(torch, dtype)), [int(size) for size in sizes])))
