"""What ours could do otherwise, in turns with what it does: other attention, autocast, windows that leave a rest."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from tqdm import tqdm

from benchmarks.contenders.registry import OURS, WINDOW
from benchmarks.contenders.shapes import Place
from benchmarks.inference_parts.gpu_choices import build_gpu_calls, run_by_kernel
from benchmarks.inference_parts.speed import Row
from benchmarks.measuring.turns import Spread, take_turns
from modeling_radio import RadioConfig, RadioModel, encoder_radio


EVEN, RAGGED = "even windows", "ragged windows"


def build_calls(preset: str, place: Place, size: int) -> dict[str, Callable[[], Any]]:
    """Return what is timed by name, with one image of random pixels.

    Args:
        preset: Shape of the network.
        place: Where, and in which type the weights are.
        size: Side in pixels, of which windows leave no rest; the ragged ones see one patch more along each side.
    """
    config = RadioConfig.from_preset(preset)
    model = RadioModel(config).eval().to(place.device, place.dtype)
    image, larger = (
        torch.rand(1, config.num_channels, side, side, device=place.device).to(place.dtype)
        for side in (size, size + config.patch_size)
    )
    calls: dict[str, Callable[[], Any]] = {
        OURS: partial(model, image, window_size="global"),
        "eager attention": partial(_eager, model, image),
        "SDPA": partial(_sdpa, model, image),
        "SDPA by the plain kernel": partial(run_by_kernel, model, image, SDPBackend.MATH),
        EVEN: partial(model, image, window_size=WINDOW),
        RAGGED: partial(model, larger, window_size=WINDOW),
    }
    if place.dtype != torch.float32:
        original = RadioModel(config).eval().to(place.device)
        calls["autocast of float32 weights"] = partial(_autocast, original, image.float(), place)
    return calls if place.device == "cpu" else calls | build_gpu_calls(model, image)


def _eager(model: RadioModel, image: Tensor) -> Any:
    before, model.config._attn_implementation = model.config._attn_implementation, "eager"
    try:
        return model(image, window_size="global")
    finally:
        model.config._attn_implementation = before


def _sdpa(model: RadioModel, image: Tensor) -> Any:
    with patch.object(encoder_radio, "is_faster_in_blocks", lambda query: False):
        return model(image, window_size="global")


def _autocast(model: RadioModel, image: Tensor, place: Place) -> Any:
    with torch.autocast(place.device, place.dtype):
        return model(image, window_size="global")


@torch.inference_mode()
def measure_choices(
    preset: str, sizes: Sequence[int], place: Place, *, budget_seconds: float = 8.0, min_rounds: int = 3
) -> list[Row]:
    """Return one row for each size: how many times as fast as what ours does the other choices are.

    Ragged windows stand beside even ones, by patch: below 1 they cost more than their patches account for.
    """
    rows = []
    for size in tqdm(sizes, desc="choices"):
        calls = build_calls(preset, place, size)
        turns = take_turns(calls, budget_seconds=budget_seconds, min_rounds=min_rounds, device=place.device)
        row: Row = {"dtype": str(place.dtype).removeprefix("torch."), "size_px": size}
        row["ours, ms"] = turns.milliseconds(OURS)
        others = [name for name in calls if name not in (OURS, EVEN, RAGGED)]
        row |= {f"{name}, times as fast": str(turns.times_as_fast(name, OURS)) for name in others}
        side = size // RadioConfig.from_preset(preset).patch_size
        ragged = turns.times_as_fast(RAGGED, EVEN)
        by_patch = Spread(*(((side + 1) / side) ** 2 * number for number in ragged))
        rows.append(row | {f"{RAGGED}, by patch": str(by_patch)})
    return rows
