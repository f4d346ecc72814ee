"""Large images in windows, and images of many sizes in one pack.

Ours with windows is compared with ours without, with the limit of no attention at all in windowed blocks (Amdahl), and
with `predict_window_cost`. Packs are compared with one image at a time and with padding.
"""

import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from benchmarks.inference import LARGEST_PX, build_native, build_ours, build_timm, needs_warm_up, split_patches
from benchmarks.measuring import MeasuringSettings, Placement, Row, report, spread_of, take_turns
from modeling_radio import RadioConfig, RadioModel


WINDOWS = (8, 16)
"""Our choice of the trained sizes."""
LEAST_PX = 512
SHARE_ROUNDS = 2
TIMED = "timed_attention"
SETS: dict[str, tuple[tuple[int, int], ...]] = {
    "thumbnails": ((3, 3), (3, 4), (4, 3), (4, 4), (4, 6), (5, 5), (6, 4), (6, 6)),
    "photographs": ((10, 20), (12, 16), (12, 18), (14, 14), (16, 12), (16, 16), (18, 12), (20, 10)),
}
"""Sets of eight grids of patches by name: sides from 48 to 96 px, and from 160 to 320 px. Our choice."""
IMAGES_PER_GRID = 2
PACKED = "ours, packed"


def run(settings: MeasuringSettings) -> None:
    """Measure and report windows, then packs."""
    sizes, rows = [size for size in settings.chosen_sizes if size >= LEAST_PX], []
    for placement in settings.placements:
        rows += measure_windows(settings.preset, sizes, placement, settings.pace)
    if not settings.quick and "bfloat16" in settings.dtypes:
        once = {"min_rounds": 2, "device": settings.device}
        placement = Placement(settings.device, torch.bfloat16)
        rows += measure_windows(settings.preset, [LARGEST_PX], placement, once, windows=WINDOWS[:1], share_rounds=1)
    report(settings, "sizes", "windows", settings.preset, rows, device=settings.device)
    rows = [
        row for placement in settings.placements for row in measure_packed(settings.preset, placement, settings.pace)
    ]
    report(settings, "sizes", "packed", settings.preset, rows, device=settings.device)


@contextmanager
def attention_timed(model: RadioModel, device: str) -> Iterator[list[float]]:
    """Time a model's attention within the context: the list receives the seconds of each call."""
    before, seconds = model.config._attn_implementation, []
    attend, wait = AttentionInterface()[before], torch.cuda.synchronize if device == "cuda" else lambda: None

    def timed(*arguments: Any, **options: Any) -> Any:
        wait()
        began = time.perf_counter()
        output = attend(*arguments, **options)
        wait()
        seconds.append(time.perf_counter() - began)
        return output

    AttentionInterface.register(TIMED, timed)
    model.config._attn_implementation = TIMED
    try:
        yield seconds
    finally:
        model.config._attn_implementation = before


def attention_share(model: RadioModel, images: Tensor, num_rounds: int = SHARE_ROUNDS) -> float:
    """Return the share of a global pass that attention itself takes, without the layers around it."""
    shares = []
    for _ in range(num_rounds):
        with attention_timed(model, images.device.type) as seconds:
            began = time.perf_counter()
            model(images, window_size="global")
            shares.append(sum(seconds) / (time.perf_counter() - began))
    return statistics.median(shares)


def amdahl_limit(config: RadioConfig, share: float) -> float:
    """Return the speedup of a pass whose windowed blocks have no attention at all.

    Args:
        config: Configuration of a network whose blocks are all alike.
        share: Share of attention in the time of a global pass.
    """
    depth = config.num_hidden_layers
    return 1 / (1 - share * sum(not config.is_global_block(index) for index in range(depth)) / depth)


@torch.inference_mode()
def measure_windows(
    preset: str,
    sizes: Sequence[int],
    placement: Placement,
    pace: Mapping[str, Any],
    *,
    windows: Sequence[int] = WINDOWS,
    share_rounds: int = SHARE_ROUNDS,
) -> list[Row]:
    """Return one row for each size and window, of ours beside ours with global attention."""
    config = RadioConfig.from_preset(preset)
    model, rows = build_ours(config, placement), []
    for size in sizes:
        images = placement.images(size)
        choices = {None: "global", **{window: window for window in windows if window < size // config.patch_size}}
        calls = {window: partial(model, images, window_size=choice) for window, choice in choices.items()}
        turns = take_turns(calls, **pace, warm_up=needs_warm_up(size, placement))
        share = attention_share(model, images, share_rounds)
        limit = amdahl_limit(config, share)
        for window in choices:
            predicted = model.predict_window_cost(size, size, window).latency_ms
            measured = 1000 * spread_of(turns.seconds[window]).median
            row: Row = {"dtype": placement.dtype_name, "size_px": size, "window": window or "global"}
            row |= {"ms": round(measured, 1), "predicted, ms": round(predicted, 1)}
            row |= {"predicted / measured": round(predicted / measured, 2), "share of attention": round(share, 3)}
            if window is not None:
                faster = turns.times_as_fast(window, None)
                row |= {"times as fast as global": str(faster), "Amdahl limit": round(limit, 2)}
                row |= {"share of the limit": round(faster.median / limit, 3)}
            rows.append(row)
    return rows


def build_calls(
    config: RadioConfig, placement: Placement, images: Sequence[Tensor]
) -> dict[str, Callable[[], list[Tensor]]]:
    """Return functions that encode all images, by name; each returns the features `(tokens, width)` of every image.

    Args:
        config: Shape of all networks.
        placement: Device and data type.
        images: Images of any sizes in their order, `(1, 3, height, width)` each.
    """
    size = config.patch_size
    grids = torch.tensor([[side // size for side in image.shape[2:]] for image in images], device=placement.device)
    patches = torch.cat([split_patches(image, size)[0] for image in images])
    ours, native = build_ours(config, placement), build_native(config, placement)

    def packed(model: Callable) -> list[Tensor]:
        features = model(patches, image_grid_hw=grids).features
        return list(features.view(-1, features.shape[-1]).split(grids.prod(1).tolist()))

    def one_by_one(model: Callable) -> list[Tensor]:
        return [model(image).features[0] for image in images]

    calls = {
        PACKED: partial(packed, ours),
        "ours, one by one": partial(one_by_one, ours),
        "native, packed": partial(packed, native),
        "native, one by one": partial(one_by_one, native),
        "timm NaFlexViT, padded": padded_call(config, placement, images),
    }
    if "image_grid_hw" not in inspect.signature(native.forward).parameters:  # transformers before it took packs
        del calls["native, packed"]
    return calls


def padded_call(config: RadioConfig, placement: Placement, images: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Return a function that runs timm's NaFlexViT on all images, padded to the longest as by its loader."""
    size, model = config.patch_size, build_timm(config, placement)
    parts = [split_patches(image, size)[0] for image in images]
    lengths = [len(part) for part in parts]
    coordinates = [
        torch.cartesian_prod(*(torch.arange(side // size, device=placement.device) for side in image.shape[2:]))
        for image in images
    ]
    given = {
        "patches": pad_sequence(parts, batch_first=True),
        "patch_valid": torch.arange(max(lengths), device=placement.device)
        < torch.tensor(lengths, device=placement.device)[:, None],
        "patch_coord": pad_sequence(coordinates, batch_first=True),
    }

    def encode() -> list[Tensor]:
        tokens = model.forward_features(**given)["patches"][:, config.num_prefix_tokens :]
        return [row[:length] for row, length in zip(tokens, lengths, strict=True)]

    return encode


def draw_images(grids: Sequence[tuple[int, int]], patch_size: int, placement: Placement) -> list[Tensor]:
    """Return images of each grid, in an order in which no two neighbors share a grid."""
    return [
        torch.rand(1, 3, rows * patch_size, cols * patch_size, device=placement.device).to(placement.dtype)
        for _ in range(IMAGES_PER_GRID)
        for rows, cols in grids
    ]


@torch.inference_mode()
def measure_packed(
    preset: str, placement: Placement, pace: Mapping[str, Any], sets: Mapping[str, Sequence[tuple[int, int]]] = SETS
) -> list[Row]:
    """Return one row for each set of sizes and way to run it."""
    config, rows = RadioConfig.from_preset(preset), []
    for name, grids in sets.items():
        calls = build_calls(config, placement, draw_images(grids, config.patch_size, placement))
        turns = take_turns(calls, **pace)
        for way in calls:
            spread = spread_of(turns.seconds[way])
            row: Row = {"dtype": placement.dtype_name, "images": name, "way": way, "ms": turns.milliseconds(way)}
            row["ms, quartiles"] = f"{1000 * spread.low:.4g} to {1000 * spread.high:.4g}"
            rows.append(row | {"ours, packed, is times as fast": str(turns.times_as_fast(PACKED, way))})
    return rows
