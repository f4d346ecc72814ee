"""Times RADIO1D's encoder and decoder over the number of tokens and the resolution, beside the plain network.

    python -m benchmarks.global_tokens [--preset radio_v2.5-b] [--sizes 224,512,1024] [--tokens 1,16,64]

The preset is the plain network; RADIO1D is the same with one merging before block three quarters deep and a decoder of
six blocks, as the published one. Random weights, one image, alternating calls in one run. Without progressive reduction
all tokens run, whatever their number: fewer are the first ones of all, and only their reader is faster.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from benchmarks.measuring.results import report
from benchmarks.measuring.settings import DTYPES, NetworkSettings, check_sizes
from benchmarks.measuring.turns import take_turns
from foundation.command_line import Command
from foundation.fields import OneOf
from modeling_radio import RadioConfig, RadioModel


def build_calls(
    preset: str, dtype: torch.dtype, tokens: Sequence[int], device: str = "cpu"
) -> dict[str, Callable[[Tensor], Any]]:
    """Return what is timed by name: the plain network, and RADIO1D with and without its decoder."""
    depth = RadioConfig.from_preset(preset).num_hidden_layers
    merged = {"downscale_levels": [depth * 3 // 4]}
    variants = {"plain": {}, "1d": merged, "progressive": {**merged, "progressive_reduction": True}}
    models = {
        name: RadioModel(RadioConfig.from_preset(preset, **fields)).eval().to(device, dtype)
        for name, fields in variants.items()
    }
    calls: dict[str, Callable[[Tensor], Any]] = {
        "plain": partial(models["plain"], window_size="global"),
        "encoder, all tokens": partial(models["1d"], decode=False),
        "encoder and decoder": models["1d"],
    }
    for count in tokens:
        calls[f"progressive encoder, {count}"] = partial(models["progressive"], num_tokens=count, decode=False)
    return calls


@torch.inference_mode()
def measure(settings: "GlobalTokensSettings") -> list[dict[str, object]]:
    """Return one row per size and dtype: milliseconds of each variant, and how much faster than the plain network."""
    rows = []
    for dtype in settings.dtypes:
        calls = build_calls(settings.preset, getattr(torch, dtype), settings.tokens, settings.device)
        for size in tqdm(settings.sizes, desc=dtype):
            image = torch.rand(1, 3, size, size, dtype=getattr(torch, dtype), device=settings.device)
            turns = take_turns({name: partial(call, image) for name, call in calls.items()}, device=settings.device)
            row: dict[str, object] = {"dtype": dtype, "size_px": size}
            row |= {f"{name}, ms": turns.milliseconds(name) for name in calls}
            others = [name for name in calls if name != "plain"]
            row |= {f"{name}, times as fast": str(turns.times_as_fast(name, "plain")) for name in others}
            rows.append(row)
    return rows


class GlobalTokensSettings(NetworkSettings):
    """As of other networks; here only float32 by default.

    Attributes:
        tokens: Numbers of global tokens of the encoder that reduces them progressively.
    """

    dtypes: Annotated[list[str], OneOf(DTYPES)] = ["float32"]
    tokens: list[Annotated[int, Field(ge=0)]] = [1, 16, 64]


COMMAND = Command("benchmarks.global_tokens", __doc__.partition("\n")[0], GlobalTokensSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments)


def _measure_and_report(settings: GlobalTokensSettings) -> None:
    settings.check_device()
    check_sizes(settings.preset, settings.sizes)
    report("global_tokens", settings.preset, measure(settings), device=settings.device)


if __name__ == "__main__":
    sys.exit(main())
