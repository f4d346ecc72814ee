"""Speed of linear layers in 8 bits relative to float32, also combined with windows.

Times are of random weights and one image: PyTorch eager and compiled, with torchao's
`Int8DynamicActivationInt8WeightConfig`, and onnxruntime with `radio export --precision int8`. Global attention
and windows are timed in both precisions at one size: if gains multiply, "of the product" is 1.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm
from transformers import TorchAoConfig

from benchmarks.inference import WINDOW
from benchmarks.measuring import MeasuringSettings, Row, report, take_turns
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.graphs.files import open_graph
from modeling_radio.conversion.onnx_precision import convert_precision
from modeling_radio.conversion.to_onnx import export_onnx, save_onnx


LARGEST_PX = 512
"""Sizes up to this one are compared in all ways; windows in both precisions at the largest of all sizes."""
ROUNDS = 4
SECONDS = 8.0
"""Our choices: with turns and medians, enough for two digits in a few minutes."""


def run(settings: MeasuringSettings) -> None:
    """Measure and report."""
    sizes = [size for size in settings.chosen_sizes if size <= LARGEST_PX]
    pace = {"min_rounds": 2} if settings.quick else {"min_rounds": ROUNDS, "budget_seconds": SECONDS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        RadioModel(RadioConfig.from_preset(settings.preset)).save_pretrained(folder / "random")
        models = open_both(folder / "random")
        calls = build_calls(models, folder, is_quick=settings.quick)
        rows = time_sizes(calls, sizes[:1] if settings.quick else sizes, pace)
        facts = {"windows": time_windows(models, max(settings.chosen_sizes), pace)}
        report(settings, "int8", "int8", settings.preset, rows, facts)


def open_both(folder: Path) -> dict[str, RadioModel]:
    """Return a folder's model in float32 and in int8: a scale for each token, and one for each channel of weights."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    int8 = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    return {
        "float32": RadioModel.from_pretrained(folder).eval(),
        "int8": RadioModel.from_pretrained(folder, quantization_config=int8).eval(),
    }


def build_calls(models: Mapping[str, RadioModel], folder: Path, *, is_quick: bool) -> dict[str, Callable[..., Tensor]]:
    """Return functions from images to features by name.

    Args:
        models: Models in both precisions.
        folder: Folder for graphs.
        is_quick: Whether to leave out compiled and exported models, which take minutes.
    """
    calls: dict[str, Callable[..., Tensor]] = {name: partial(features_of, model) for name, model in models.items()}
    if is_quick:
        return calls
    for name, model in models.items():  # sizes that stay open make one graph for all of them
        calls[f"compiled {name}"] = partial(features_of, torch.compile(model, dynamic=True))
    save_onnx(export_onnx(models["float32"], adaptors=[])[1], folder / "float32.onnx")
    convert_precision(folder / "float32.onnx", folder / "int8.onnx", "int8")
    for name in models:
        graph = open_graph(folder / f"{name}.onnx", torch.get_num_threads())
        calls[f"ONNX {name}"] = lambda images, graph=graph: graph({"pixel_values": images})[1]
    return calls


def features_of(model: Any, images: Tensor, window_size: int | str = "global") -> Tensor:
    """Return the backbone's features `(batch, tokens, channels)`, without adaptors."""
    return model(images, window_size=window_size, adaptor_names=[]).features


@torch.inference_mode()
def time_sizes(calls: Mapping[str, Callable[..., Tensor]], sizes: list[int], pace: Mapping[str, Any]) -> list[Row]:
    """Return a row for each size: milliseconds, how many times as fast as float32, and cosines with it."""
    rows = []
    for size in tqdm(sizes, desc="int8"):
        image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        turns = take_turns({name: partial(call, image) for name, call in calls.items()}, **pace)
        expected = calls["float32"](image)
        others = [name for name in calls if name != "float32"]
        row: Row = {"size_px": size} | {f"{name}, ms": turns.milliseconds(name) for name in calls}
        row |= {f"{name}, times as fast": str(turns.times_as_fast(name, "float32")) for name in others}
        lossy = [name for name in others if name.endswith("int8")]
        rows.append(row | {f"{name}, cosine": mean_cosine(calls[name](image), expected) for name in lossy})
    return rows


@torch.inference_mode()
def time_windows(models: Mapping[str, RadioModel], size: int, pace: Mapping[str, Any]) -> list[Row]:
    """Return the times of global attention and windows in both precisions."""
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    windows: dict[str, int | str] = {"global": "global", f"window {WINDOW}": WINDOW}
    calls = {
        f"{name}, {window}": partial(features_of, model, image, side)
        for window, side in windows.items()
        for name, model in models.items()
    }
    turns = take_turns(calls, **pace)
    plain, int8, windowed, both = calls
    gains = {name: turns.times_as_fast(name, plain) for name in calls}
    rows: list[Row] = [
        {"case": name, "ms": turns.milliseconds(name), "times as fast": str(gain)} for name, gain in gains.items()
    ]
    rows[-1]["of the product"] = round(gains[both].median / (gains[int8].median * gains[windowed].median), 2)
    return [{**row, "size_px": size} for row in rows]


def mean_cosine(features: Tensor, others: Tensor) -> float:
    """Return the mean cosine of two models' tokens, to four digits."""
    return round(cosine_similarity(features.double(), others.double(), dim=-1).mean().item(), 4)
