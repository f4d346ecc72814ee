"""Speed and memory of our network and its peers, one image at a time.

All have random weights and equal shapes, and take turns. On a GPU full batches and 2048 px are timed besides.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DINOv3ViTConfig, DINOv3ViTModel, Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.radio import RadioConfig as NativeConfig
from transformers.models.radio import RadioModel as NativeModel
from transformers.models.sam3 import Sam3ViTConfig, Sam3ViTModel

from benchmarks.measuring import (
    ROOT,
    MeasuringSettings,
    Placement,
    Row,
    Turns,
    count_flops,
    measure_peak,
    peak_mb_of,
    report,
    spread_of,
    take_turns,
)
from modeling_radio import RadioConfig, RadioModel


WINDOW = 8
"""Tokens along a side of the window that is compared: the one that asks for most speed. Our choice."""
OURS, NATIVE = "ours", "native"
WINDOWED, COMPILED = f"ours, window {WINDOW}", "ours, compiled"
EQUAL_WORK = (OURS, COMPILED, NATIVE, "timm RADIO", "timm ViT", "plain code")
"""Networks that do the same work in the same shape, token for token."""
SAM3_WINDOW = 24
SAM3_PRETRAINED_GRID = 24
"""Patches of a window and along a side of the table of positions, as `facebook/sam3`."""
Encode = Callable[[Tensor], Tensor]
"""From images `(batch, 3, height, width)` in [0, 1] to tokens `(batch, length, width)`."""
FULL_BATCH_TOKENS = 2**15
"""Our choice: patches of a full batch on a GPU, 32 images of 512 px, which keep an H100 busy in any of its parts."""
LARGEST_PX = 2048
LARGEST_WARMED_UP = 512
"""Our choice: at the next size a round of all networks takes a minute on a CPU."""
SMALL = "radio-test"
"""Preset of a network that runs first, so that memory of the packages does not count."""


class Network(NamedTuple):
    """A network that is timed.

    Attributes:
        build: From configuration, place and the side of the images to what encodes images.
        by_size: Whether it is built for one size.
        counted_as: Name of the network that does the same products, where those of this one cannot be counted.
    """

    build: Callable[[RadioConfig, Placement, int], Encode]
    by_size: bool = False
    counted_as: str | None = None


def _ours(
    config: RadioConfig, placement: Placement, size: int, window: int | str = "global", *, compiled: bool = False
) -> Encode:
    model = RadioModel(config).eval().to(placement.device, placement.dtype)
    if compiled:  # block by block, once for all and all sizes
        for block in model.radio_model.model.blocks:
            block.compile(dynamic=None)
    return lambda images: model(images, window_size=window).last_hidden_state


def _native(config: RadioConfig, placement: Placement, size: int) -> Encode:
    return _last_hidden_state(NativeModel(NativeConfig.from_dict(config.to_dict())), placement)


def _timm_radio(config: RadioConfig, placement: Placement, size: int) -> Encode:
    model = timm.create_model(
        "naflexvit_base_patch16_radio_v3",
        init_values=config.layerscale_value if config.use_layer_scale else None,
        pos_embed_grid_size=2 * (config.position_grid_size,),
        **_timm_shape(config),
    )
    return model.eval().to(placement.device, placement.dtype).forward_features


def _timm_shape(config: RadioConfig) -> dict[str, Any]:
    return {
        "num_classes": 0,
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "reg_tokens": config.num_prefix_tokens - 1,
    }


def _shape(config: RadioConfig) -> dict[str, int]:
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "patch_size": config.patch_size,
    }


def _timm_vit(config: RadioConfig, placement: Placement, size: int) -> Encode:
    options = {"img_size": size, "global_pool": "", "no_embed_class": True}
    return (
        VisionTransformer(**_timm_shape(config), **options)
        .eval()
        .to(placement.device, placement.dtype)
        .forward_features
    )


class PlainBlock(nn.Module):
    """A transformer block as one writes it down."""

    def __init__(self, width: int, mlp_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))


class PlainTransformer(nn.Module):
    """A vision transformer as one writes it down, for images of one size: nothing is checked, cropped or resized."""

    def __init__(self, config: RadioConfig, num_patches: int) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        block = (width, config.intermediate_size, config.num_attention_heads)
        self.projection = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(torch.randn(1, num_patches, width))
        self.prefix = nn.Parameter(torch.randn(1, config.num_prefix_tokens, width))
        self.blocks = nn.Sequential(*(PlainBlock(*block) for _ in range(config.num_hidden_layers)))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.projection(images - 0.5).flatten(2).transpose(1, 2) + self.positions
        return self.blocks(torch.cat([self.prefix.expand(len(tokens), -1, -1), tokens], dim=1))


def _plain_code(config: RadioConfig, placement: Placement, size: int) -> Encode:
    return PlainTransformer(config, (size // config.patch_size) ** 2).eval().to(placement.device, placement.dtype)


def _last_hidden_state(model: nn.Module, placement: Placement) -> Encode:
    model = model.eval().to(placement.device, placement.dtype)
    return lambda images: model(images).last_hidden_state


def _dinov3(config: RadioConfig, placement: Placement, size: int) -> Encode:
    registers = config.num_prefix_tokens - 1
    return _last_hidden_state(
        DINOv3ViTModel(DINOv3ViTConfig(**_shape(config), num_register_tokens=registers)), placement
    )


def _siglip2(config: RadioConfig, placement: Placement, size: int) -> Encode:
    model = Siglip2VisionModel(Siglip2VisionConfig(**_shape(config), vision_use_head=False))
    model = model.eval().to(placement.device, placement.dtype)

    def encode(images: Tensor) -> Tensor:
        grid = [side // config.patch_size for side in images.shape[2:]]
        patches = split_patches(images, config.patch_size).unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)
        return model(patches, None, torch.tensor([grid] * len(images), device=images.device)).last_hidden_state

    return encode


def _sam3(config: RadioConfig, placement: Placement, size: int) -> Encode:
    depth = config.num_hidden_layers
    options = {
        "image_size": size,
        "window_size": SAM3_WINDOW,
        "global_attn_indexes": [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)],  # the last block of each
        "pretrain_image_size": SAM3_PRETRAINED_GRID * config.patch_size,
    }
    return _last_hidden_state(Sam3ViTModel(Sam3ViTConfig(**_shape(config), **options)), placement)


def split_patches(images: Tensor, size: int) -> Tensor:
    """Return the flattened patches `(batch, rows * cols, 3 * size**2)` of images, channels first."""
    patches = images.unfold(2, size, size).unfold(3, size, size)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


NETWORKS: dict[str, Network] = {
    OURS: Network(_ours),
    COMPILED: Network(partial(_ours, compiled=True), counted_as=OURS),
    WINDOWED: Network(partial(_ours, window=WINDOW)),
    NATIVE: Network(_native),
    "timm RADIO": Network(_timm_radio),
    "timm ViT": Network(_timm_vit, by_size=True),
    "plain code": Network(_plain_code, by_size=True),
    "DINOv3": Network(_dinov3),
    "SigLIP2": Network(_siglip2),
    "SAM3": Network(_sam3, by_size=True),
}
"""SigLIP2 and SAM3 have patch tokens only."""


def run(settings: MeasuringSettings) -> None:
    """Measure and report speed, then memory in the first data type."""
    peaks = {placement: measure_peak(placement) for placement in settings.placements}
    facts = {f"{placement.dtype_name}, GFLOP/s": round(peak) for placement, peak in peaks.items()}
    rows = []
    for placement, peak in peaks.items():
        sizes = settings.chosen_sizes
        if settings.on_gpu:
            sizes = sizes if settings.quick else sorted({*sizes, LARGEST_PX})
            patch_size = RadioConfig.from_preset(settings.preset).patch_size
            batches = {size: full_batch(size, patch_size) for size in sizes}
            rows += measure_speed(settings.preset, sizes, placement, peak, settings.pace, batches)
        rows += measure_speed(settings.preset, sizes, placement, peak, settings.pace)
    report(settings, "inference", "speed", settings.preset, rows, facts, settings.device)
    rows = measure_memory(settings.preset, settings.chosen_sizes, settings.placements[0])
    report(settings, "inference", "memory", settings.preset, rows, device=settings.device)


def needs_warm_up(size: int, placement: Placement) -> bool:
    """Return whether to run a warm-up round: for large images on a CPU the setup takes a negligible time."""
    return placement.device != "cpu" or size <= LARGEST_WARMED_UP


def full_batch(size: int, patch_size: int) -> int:
    """Return the number of images of a size in a full batch."""
    return max(1, FULL_BATCH_TOKENS // (size // patch_size) ** 2)


@torch.inference_mode()
def measure_speed(
    preset: str,
    sizes: Sequence[int],
    placement: Placement,
    peak: float,
    pace: Mapping[str, object],
    batch_of: Mapping[int, int] | None = None,
) -> list[Row]:
    """Return one row for each size and network.

    Args:
        preset: Shape of all networks.
        sizes: Image sides in pixels, ascending.
        placement: Device and data type.
        peak: The machine's peak in that type, 1e9 operations a second.
        pace: Options of `take_turns`.
        batch_of: Batch size by image size; one by default.
    """
    config, rows = RadioConfig.from_preset(preset), []
    kept: dict[str, Encode] = {}
    for size in tqdm(sizes, desc=f"speed, {placement.dtype_name}"):
        for name, network in NETWORKS.items():
            if name not in kept or network.by_size:
                kept[name] = network.build(config, placement, size)
        batch = (batch_of or {}).get(size, 1)
        images = placement.images(size, batch)
        calls = {name: partial(encode, images) for name, encode in kept.items()}
        counted = [name for name in calls if NETWORKS[name].counted_as is None]
        one = placement.images(size)
        flops = {name: batch * count_flops(partial(kept[name], one)) for name in counted}
        turns = take_turns(calls, **pace, warm_up=needs_warm_up(size, placement))
        rows += rows_of(size, batch, placement, turns, flops, peak)
    add_exponents(rows, config)
    return rows


def rows_of(
    size: int, batch: int, placement: Placement, turns: Turns[str], flops: Mapping[str, float], peak: float
) -> list[Row]:
    """Return the rows of one size from times and operations of the networks."""
    rows: list[Row] = []
    for name, seconds in turns.seconds.items():
        operations, taken = flops[NETWORKS[name].counted_as or name], spread_of(seconds)
        row: Row = {"dtype": placement.dtype_name, "size_px": size, "batch": batch, "contender": name}
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
    """Add to each row the exponent with which time grew with tokens since the next smaller size of the network."""
    before: dict[object, Row] = {}
    for row in rows:
        if row["contender"] in before and row["batch"] == before[row["contender"]]["batch"]:
            smaller = before[row["contender"]]
            tokens = [config.num_prefix_tokens + (each["size_px"] // config.patch_size) ** 2 for each in (row, smaller)]
            row["exponent"] = round(math.log(row["ms"] / smaller["ms"]) / math.log(tokens[0] / tokens[1]), 2)
        before[row["contender"]] = row


def measure_memory(preset: str, sizes: Sequence[int], placement: Placement) -> list[Row]:
    """Return one row for each network: the peak of weights and activations in MB while one image runs, by size.

    Each is measured in a process of its own; the compiled one, whose weights are the same, is left out.
    """
    rows = []
    for name in tqdm([name for name in NETWORKS if name != COMPILED], desc="memory"):
        words = [name, preset, placement.device, placement.dtype_name, *map(str, sizes)]
        command = [sys.executable, "-m", "benchmarks.inference", *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        peaks = json.loads(done.stdout.splitlines()[-1])
        row: Row = {"contender": name, "dtype": placement.dtype_name}
        rows.append(row | {f"{size} px, MB": round(peak) for size, peak in zip(sizes, peaks, strict=True)})
    return rows


@torch.inference_mode()
def memory_of(name: str, preset: str, placement: Placement, sizes: Sequence[int]) -> list[float]:
    """In a new process: return the peak MB of one image of each size, weights included."""
    network, config = NETWORKS[name], RadioConfig.from_preset(preset)
    network.build(RadioConfig.from_preset(SMALL), placement, 64)(placement.images(64))
    before, peaks, encode = peak_mb_of(lambda: None, placement.device), [], None
    for size in sizes:
        if encode is None or network.by_size:
            encode = None  # so that two are never held
            encode = network.build(config, placement, size)
        peaks.append(peak_mb_of(partial(encode, placement.images(size)), placement.device) - before)
    return peaks


def _digits(number: float) -> float:
    return float(f"{number:.3g}")


if __name__ == "__main__":
    name, preset, device, dtype, *sizes = sys.argv[1:]
    print(json.dumps(memory_of(name, preset, Placement(device, getattr(torch, dtype)), [int(size) for size in sizes])))
