"""RADIO1D's encoder and decoder over the number of tokens and the resolution, beside the plain network.

The preset is the plain network; RADIO1D is the same with one merging before block three quarters deep and a decoder of
six blocks, as the published one. Without progressive reduction all tokens run, whatever their number: fewer are the
first ones of all, and only their reader is faster.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.contenders.shapes import Place
from benchmarks.inference_parts.speed import Row
from benchmarks.measuring.turns import take_turns
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.resolution_radio import Resolution


TOKENS = (1, 16, 64)
"""Our choice: numbers of global tokens of the encoder that reduces them progressively."""


def merged_fields(preset: str) -> dict[str, Any]:
    """Return what makes a RADIO1D of a preset."""
    return {"downscale_levels": [RadioConfig.from_preset(preset).num_hidden_layers * 3 // 4]}


def _progressive(count: int) -> str:
    return f"progressive encoder, {count}"


def build_calls(preset: str, place: Place, tokens: Sequence[int]) -> dict[str, Callable[[Tensor], Any]]:
    """Return what is timed by name: the plain network, and RADIO1D with and without its decoder."""
    merged = merged_fields(preset)
    variants = {"plain": {}, "1d": merged, "progressive": {**merged, "progressive_reduction": True}}
    models = {
        name: RadioModel(RadioConfig.from_preset(preset, **fields)).eval().to(place.device, place.dtype)
        for name, fields in variants.items()
    }
    calls: dict[str, Callable[[Tensor], Any]] = {
        "plain": partial(models["plain"], window_size="global"),
        "encoder, all tokens": partial(models["1d"], decode=False),
        "encoder and decoder": models["1d"],
    }
    for count in tokens:
        calls[_progressive(count)] = partial(models["progressive"], num_tokens=count, decode=False)
    return calls


@torch.inference_mode()
def measure_global_tokens(
    preset: str,
    sizes: Sequence[int],
    place: Place,
    *,
    tokens: Sequence[int] = TOKENS,
    budget_seconds: float = 8.0,
    min_rounds: int = 3,
) -> list[Row]:
    """Return one row for each size: milliseconds of each variant, and how much faster than the plain network.

    Numbers of tokens that an image of that size does not have are left out.
    """
    rows = []
    calls, dtype = build_calls(preset, place, tokens), str(place.dtype).removeprefix("torch.")
    merged = RadioConfig.from_preset(preset, **merged_fields(preset))
    for size in tqdm(sizes, desc="global tokens"):
        image = torch.rand(1, 3, size, size, device=place.device).to(place.dtype)
        available = merged.count_global_tokens(Resolution(size // merged.patch_size, size // merged.patch_size))
        too_many = {_progressive(count) for count in tokens if count > available}
        runs = {name: partial(call, image) for name, call in calls.items() if name not in too_many}
        turns = take_turns(runs, budget_seconds=budget_seconds, min_rounds=min_rounds, device=place.device)
        row: Row = {"dtype": dtype, "size_px": size}
        row |= {f"{name}, ms": turns.milliseconds(name) for name in runs}
        others = [name for name in runs if name != "plain"]
        row |= {f"{name}, times as fast": str(turns.times_as_fast(name, "plain")) for name in others}
        rows.append(row)
    return rows
