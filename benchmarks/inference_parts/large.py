"""Published shapes at their own sizes, for a GPU: an encoder in place of SAM3's beside that, and full batches of H."""

from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.contenders.radio import build_ours
from benchmarks.contenders.registry import WINDOW
from benchmarks.contenders.shapes import Place, Shape, flops_of, global_work
from benchmarks.inference_parts.speed import Row
from benchmarks.measuring.limits import Limits
from benchmarks.measuring.turns import spread_of, take_turns
from modeling_radio import RadioConfig


class Published(NamedTuple):
    """What is compared.

    Attributes:
        segmenter: Preset that stands in for SAM3's encoder.
        segmenter_size: Side of its images in pixels: as many patches of 16 as SAM3 has of 14.
        sam3: Fields of SAM3's configuration, whose defaults are those of `facebook/sam3`, at 1008 px.
        huge: Preset of the full batch.
        huge_size: Side of its images.
        huge_batch: How many.
    """

    segmenter: str = "c-radio_v4-so400m"
    segmenter_size: int = 1152
    sam3: dict[str, Any] = {}
    huge: str = "c-radio_v4-h"
    huge_size: int = 512
    huge_batch: int = 32


@torch.inference_mode()
def measure_large(
    place: Place,
    limits: Limits,
    published: Published | None = None,
    *,
    budget_seconds: float = 8.0,
    min_rounds: int = 3,
) -> list[Row]:
    """Return one row for each network."""
    published = published or Published()
    pace = {"budget_seconds": budget_seconds, "min_rounds": min_rounds, "device": place.device}
    return [*_segmenters(place, published, pace), *_full_batch(place, limits, published, pace)]


def _segmenters(place: Place, published: Published, pace: dict[str, Any]) -> list[Row]:
    from transformers.models.sam3 import Sam3ViTConfig, Sam3ViTModel

    config = Sam3ViTConfig(**published.sam3)
    sam3 = Sam3ViTModel(config).eval().to(place.device, place.dtype)
    ours = build_ours(RadioConfig.from_preset(published.segmenter), place)
    own, other = (_images(1, size, place) for size in (published.segmenter_size, int(config.image_size)))
    names = [f"{published.segmenter}, window {WINDOW}, {published.segmenter_size} px", f"SAM3, {config.image_size} px"]
    calls = {names[0]: partial(ours, own, window_size=WINDOW), names[1]: partial(sam3, other)}
    turns = take_turns(calls, **pace)
    return [
        {
            "network": name,
            "ms": turns.milliseconds(name),
            "times as fast as SAM3": str(turns.times_as_fast(name, names[1])),
        }
        for name in names
    ]


def _full_batch(place: Place, limits: Limits, published: Published, pace: dict[str, Any]) -> list[Row]:
    config = RadioConfig.from_preset(published.huge)
    shape, images = Shape.of(config), _images(published.huge_batch, published.huge_size, place)
    eager, compiled = (build_ours(config, place, compiled=is_compiled) for is_compiled in (False, True))
    turns = take_turns({"eager": partial(eager, images), "compiled": partial(compiled, images)}, **pace)
    patches = (published.huge_size // shape.patch_size) ** 2
    flops = flops_of(shape, global_work(shape, shape.num_prefix + patches), patches) * published.huge_batch
    rows: list[Row] = []
    for name, seconds in turns.seconds.items():
        share = flops / spread_of(seconds).median / 1e9 / limits.gflops
        what = f"{published.huge}, {published.huge_batch} x {published.huge_size} px, {name}"
        rows.append({"network": what, "ms": turns.milliseconds(name), "share of peak": round(share, 3)})
    return rows


def _images(batch: int, size: int, place: Place) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, device=place.device).to(place.dtype)
