"""Latency and throughput of all contenders over the size of the image, and what share of the machine that is."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from tqdm import tqdm

from benchmarks.contenders.registry import CONTENDERS, EQUAL_WORK, NATIVE, OURS
from benchmarks.contenders.shapes import Place, Shape, flops_of, weight_bytes
from benchmarks.measuring.limits import Limits
from benchmarks.measuring.turns import Turns, spread_of, take_turns
from modeling_radio import RadioConfig


FULL_BATCH_TOKENS = 2**15
"""Our choice: patches of a full batch on a GPU, 32 images of 512 px, which keep an H100 busy in any of its parts."""
LARGEST_WARMED_UP = 512
"""Our choice: at the next size a round of all contenders takes a minute."""
Row = dict[str, object]


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
    limits: Limits,
    *,
    names: Sequence[str] = tuple(CONTENDERS),
    batch_of: Mapping[int, int] | None = None,
    budget_seconds: float = 8.0,
    min_rounds: int = 3,
) -> list[Row]:
    """Return one row for each size and contender.

    Args:
        preset: Shape of all contenders.
        sizes: Image sides in pixels, ascending.
        place: Device and data type.
        limits: Of the machine in that type.
        names: Contenders; ours and the native one are among them.
        batch_of: Images of a call by size; one by default.
        budget_seconds: For the rounds of each size.
        min_rounds: For each size.
    """
    config, kept, rows = RadioConfig.from_preset(preset), {}, []
    for size in tqdm(sizes, desc=_dtype_name(place)):
        for name in names:
            if name not in kept or CONTENDERS[name].by_size:
                kept[name] = CONTENDERS[name].encoder(config, place, size)
        batch = (batch_of or {}).get(size, 1)
        images = torch.rand(batch, config.num_channels, size, size, device=place.device).to(place.dtype)
        calls = {name: partial(encode, images) for name, encode in kept.items()}
        pace = {"min_rounds": min_rounds, "budget_seconds": budget_seconds, "warm_up": needs_warm_up(size, place)}
        turns = take_turns(calls, **pace, device=place.device)
        rows += rows_of(Shape.of(config), size, batch, place, turns, limits)
    add_exponents(rows)
    return rows


def rows_of(shape: Shape, size: int, batch: int, place: Place, turns: Turns[str], limits: Limits) -> list[Row]:
    """Return what follows from the times of one size."""
    side = size // shape.patch_size
    rows: list[Row] = []
    for name, seconds in turns.seconds.items():
        work = CONTENDERS[name].work(shape, side, side)
        flops, time = flops_of(shape, work, side**2) * batch, spread_of(seconds)
        row: Row = {"dtype": _dtype_name(place), "size_px": size, "batch": batch, "contender": name}
        row |= {"tokens": work[-1].tokens, "ms": _digits(1000 * time.median)}
        row |= {"ms, quartiles": f"{_digits(1000 * time.low)} to {_digits(1000 * time.high)}"}
        row |= {"images/s": _digits(batch / time.median), "times as fast as native": _ratio(turns, name, NATIVE)}
        row |= {"GFLOP": _digits(flops / 1e9), "GFLOP/s": _digits(flops / time.median / 1e9)}
        row["share of peak"] = _digits(flops / time.median / 1e9 / limits.gflops)
        row["share of bandwidth"] = _digits(weight_bytes(shape, place.dtype) / time.median / 1e9 / limits.gigabytes)
        rows.append(row)
    others = [name for name in EQUAL_WORK if name in turns.seconds and not name.startswith(OURS)]
    if others:
        best = min(others, key=lambda name: spread_of(turns.seconds[name]).median)
        rows[0] |= {"best of equal work": best, "times as fast as that": _ratio(turns, OURS, best)}
    return rows


def add_exponents(rows: Sequence[Row]) -> None:
    """Add to each row by what power of the tokens the time grew since the next smaller size of the same contender."""
    before: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = (row["contender"], row["dtype"])
        if key in before and row["batch"] == before[key]["batch"]:
            growth = float(str(row["ms"])) / float(str(before[key]["ms"]))
            tokens = int(str(row["tokens"])) / int(str(before[key]["tokens"]))
            row["exponent"] = round(math.log(growth) / math.log(tokens), 2)
        before[key] = row


def _ratio(turns: Turns[str], name: str, other: str) -> str:
    return str(turns.times_as_fast(name, other))


def _dtype_name(place: Place) -> str:
    return str(place.dtype).removeprefix("torch.")


def _digits(number: float) -> float:
    return float(f"{number:.3g}")
