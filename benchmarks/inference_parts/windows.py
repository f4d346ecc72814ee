"""What windows are worth beside what they could be worth at most (Amdahl), and beside what is predicted."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.contenders.shapes import Place, Shape
from benchmarks.inference_parts.speed import Row, needs_warm_up
from benchmarks.measuring.turns import spread_of, take_turns
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.attention_functions_radio import blocked_attention_forward, is_faster_in_blocks


SHARE_ROUNDS = 2
TIMED = "timed_sdpa"
WINDOWS = (8, 16)
"""Our choice of the trained sizes."""


class AttentionClock:
    """An attention function that adds up how long its calls take.

    Attributes:
        seconds: So far.
    """

    def __init__(self, device: str) -> None:
        self.seconds = 0.0
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def __call__(self, module: Any, query: Tensor, *others: Any, **options: Any) -> tuple[Tensor, None]:
        attend = blocked_attention_forward if is_faster_in_blocks(query) else sdpa_attention_forward
        self._wait()
        began = time.perf_counter()
        answer = attend(module, query, *others, **options)
        self._wait()
        self.seconds += time.perf_counter() - began
        return answer


@contextmanager
def attention_timed(model: RadioModel, device: str) -> Iterator[AttentionClock]:
    """Let a model's attention be timed for a while; it is what "sdpa" stands for, as before."""
    clock, before = AttentionClock(device), model.config._attn_implementation
    AttentionInterface.register(TIMED, clock)
    model.config._attn_implementation = TIMED
    try:
        yield clock
    finally:
        model.config._attn_implementation = before


def attention_share(model: RadioModel, images: Tensor, num_rounds: int = SHARE_ROUNDS) -> float:
    """Return the share of a global pass that attention itself takes, without the layers around it."""
    shares = []
    with attention_timed(model, images.device.type) as clock:
        for _ in range(num_rounds):
            clock.seconds = 0.0
            began = time.perf_counter()
            model(images, window_size="global")
            clock._wait()
            shares.append(clock.seconds / (time.perf_counter() - began))
    return statistics.median(shares)


def amdahl_limit(shape: Shape, share: float) -> float:
    """Return how many times as fast a pass is whose windowed blocks have no attention at all.

    Args:
        shape: Of the network, all of whose blocks are alike.
        share: Of attention in the time of a global pass.
    """
    return 1 / (1 - share * len(shape.windowed) / shape.depth)


@torch.inference_mode()
def measure_windows(
    preset: str,
    sizes: Sequence[int],
    place: Place,
    *,
    windows: Sequence[int] = WINDOWS,
    budget_seconds: float = 8.0,
    min_rounds: int = 3,
    share_rounds: int = SHARE_ROUNDS,
) -> list[Row]:
    """Return one row for each size and window, of ours beside ours with global attention."""
    config = RadioConfig.from_preset(preset)
    model, shape, rows = RadioModel(config).eval().to(place.device, place.dtype), Shape.of(config), []
    for size in sizes:
        side = size // shape.patch_size
        images = torch.rand(1, config.num_channels, size, size, device=place.device).to(place.dtype)
        choices = {None: "global", **{window: window for window in windows if window < side}}
        calls = {window: partial(model, images, window_size=choice) for window, choice in choices.items()}
        pace = {"min_rounds": min_rounds, "budget_seconds": budget_seconds, "warm_up": needs_warm_up(size, place)}
        turns = take_turns(calls, **pace, device=place.device)
        share = attention_share(model, images, share_rounds)
        limit = amdahl_limit(shape, share)
        for window in choices:
            predicted = model.predict_window_cost(size, size, window).latency_ms
            measured = 1000 * spread_of(turns.seconds[window]).median
            row: Row = {"dtype": str(place.dtype).removeprefix("torch."), "size_px": size, "window": window or "global"}
            row |= {"ms": round(measured, 1), "predicted, ms": round(predicted, 1)}
            row |= {"predicted / measured": round(predicted / measured, 2)}
            row |= {"share of attention": round(share, 3)}
            if window is not None:
                faster = turns.times_as_fast(window, None)
                row |= {"times as fast as global": str(faster), "Amdahl limit": round(limit, 2)}
                row |= {"share of the limit": round(faster.median / limit, 3)}
            rows.append(row)
    return rows
