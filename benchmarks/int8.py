"""Times int8 beside float32, alone and with windows, and measures what it costs in quality.

    python -m benchmarks.int8 [--student FOLDER] [--preset radio_v2.5-b] [--sizes 224,512] [--no-onnx] [--no-compiled]

Times are of a network with random weights, one image, calls that take turns in one run: PyTorch as it is and compiled,
with torchao's `Int8DynamicActivationInt8WeightConfig`, and onnxruntime with `conversion.to_onnx --precision int8`.
Quality is of a trained student where one is given: cosines of its features on photographs, and its kNN and mIoU in
both precisions. At `--window-px`, global attention and windows in both precisions: if gains multiply, "of the product"
is 1; the profile beside it says where the time goes. Prints tables and writes `benchmarks/results/`.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.profiler import ProfilerActivity, profile
from torchvision.io import decode_image
from torchvision.transforms.v2.functional import center_crop, resize
from tqdm import tqdm
from transformers import TorchAoConfig

from benchmarks.data import find_photographs
from benchmarks.measuring.results import report, table_of
from benchmarks.measuring.settings import check_sizes
from benchmarks.measuring.turns import Turns, take_turns
from conversion.graphs.files import RunGraph, open_graph
from conversion.onnx_precision import convert_precision
from conversion.to_onnx import export_onnx, save_onnx
from foundation.command_line import Command
from foundation.settings import Settings
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.resolution_radio import largest_side
from training.evaluation.run import run_evaluations
from training.evaluation.settings import EvaluationSettings


NUM_PHOTOGRAPHS = 32
WINDOW_SIZE = 8
MIN_ROUNDS = 4
"""Our choice: with turns and medians, enough for two digits in a few minutes."""

LINEAR = ("aten::addmm", "aten::mm", "aten::_int_mm")
ATTENTION = ("scaled_dot_product", "flash_attention")

Row = dict[str, object]


class Int8Settings(Settings):
    """What is measured.

    Attributes:
        student: Folder of a trained student, whose quality is measured; None leaves quality out.
        preset: Shape of the network whose speed is measured.
        sizes: Image sides in pixels.
        window_px: Side of the image of windows and profile; None leaves them out.
        compiled: Whether to time compiled networks too. Compiling takes a minute.
        onnx: Whether to time onnxruntime too. Exporting takes a minute.
        photographs: Folder of JPEGs; by default the demo's packages.
    """

    student: Path | None = None
    preset: str = "radio_v2.5-b"
    sizes: list[int] = [224, 512]
    window_px: int | None = Field(1024, gt=0)
    compiled: bool = True
    onnx: bool = True
    photographs: Path | None = None


def int8_config() -> TorchAoConfig:
    """Return linear layers in 8 bits: activations with a scale for each token, weights with one for each channel."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return TorchAoConfig(Int8DynamicActivationInt8WeightConfig())


def open_both(folder: Path) -> dict[str, RadioModel]:
    """Return a folder's model in float32 and in int8."""
    return {
        "float32": RadioModel.from_pretrained(folder).eval(),
        "int8": RadioModel.from_pretrained(folder, quantization_config=int8_config()).eval(),
    }


def features_of(model: nn.Module, images: Tensor, window_size: int | str = "global") -> Tensor:
    """Return the backbone's features `(batch, tokens, channels)`, without adaptors."""
    return model(images, window_size=window_size, adaptor_names=[]).features


def mean_cosine(features: Tensor, others: Tensor) -> float:
    """Return the mean cosine of two models' tokens, to four digits."""
    return round(cosine_similarity(features.double(), others.double(), dim=-1).mean().item(), 4)


def onnx_calls(model: RadioModel, folder: Path) -> dict[str, Callable[[Tensor], Any]]:
    """Return functions that run a model with onnxruntime in both precisions, with as many threads as PyTorch has."""
    save_onnx(export_onnx(model, adaptors=[])[1], folder / "float32.onnx")
    convert_precision(folder / "float32.onnx", folder / "int8.onnx", "int8")
    graphs = {name: open_graph(folder / f"{name}.onnx", torch.get_num_threads()) for name in ("float32", "int8")}

    def run(graph: RunGraph, images: Tensor) -> Tensor:
        _, features = graph({"pixel_values": images})
        return features

    return {f"ONNX {name}": partial(run, graph) for name, graph in graphs.items()}


@torch.inference_mode()
def time_sizes(settings: Int8Settings, models: Mapping[str, RadioModel], folder: Path) -> list[Row]:
    """Return a row for each size: milliseconds, how many times as fast as float32, and cosines with it."""
    calls: dict[str, Callable[[Tensor], Any]] = {name: partial(features_of, model) for name, model in models.items()}
    if settings.compiled:
        # Sizes that stay open make one graph for all of them.
        compiled = {f"compiled {name}": torch.compile(model, dynamic=True) for name, model in models.items()}
        calls |= {name: partial(features_of, model) for name, model in compiled.items()}
    if settings.onnx:
        calls |= onnx_calls(models["float32"], folder)
    rows = []
    for size in tqdm(settings.sizes, desc="sizes"):
        image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        turns = take_turns({name: partial(call, image) for name, call in calls.items()}, min_rounds=MIN_ROUNDS)
        expected = calls["float32"](image)
        row: Row = {"size_px": size}
        row |= {f"{name}, ms": turns.milliseconds(name) for name in calls}
        row |= {
            f"{name}, times as fast": str(turns.times_as_fast(name, "float32")) for name in calls if name != "float32"
        }
        row |= {f"{name}, cosine": mean_cosine(call(image), expected) for name, call in calls.items() if "int8" in name}
        rows.append(row)
    return rows


@torch.inference_mode()
def time_windows(models: Mapping[str, RadioModel], size: int) -> tuple[list[Row], list[Row]]:
    """Return the times of global attention and windows in both precisions, and where they go."""
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    windows: dict[str, int | str] = {"global": "global", f"window {WINDOW_SIZE}": WINDOW_SIZE}
    calls = {
        f"{name}, {window}": partial(features_of, model, image, side)
        for window, side in windows.items()
        for name, model in models.items()
    }
    turns = take_turns(calls, min_rounds=MIN_ROUNDS)
    return _window_rows(turns, list(calls)), [{"case": name, **shares_of(call)} for name, call in calls.items()]


def _window_rows(turns: Turns[str], names: Sequence[str]) -> list[Row]:
    plain, int8, windowed, both = names
    gains = {name: turns.times_as_fast(name, plain) for name in names}
    rows: list[Row] = [
        {"case": name, "ms": turns.milliseconds(name), "times as fast": str(gain)} for name, gain in gains.items()
    ]
    product = gains[int8].median * gains[windowed].median
    rows[-1]["of the product"] = round(gains[both].median / product, 2)
    return rows


def shares_of(call: Callable[[], object]) -> Row:
    """Return the milliseconds that a call spends in matrix products of linear layers, in attention and in the rest.

    What int8 adds to round activations counts as rest.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    spent = {"linear": 0.0, "attention": 0.0, "rest": 0.0}
    for event in profiler.key_averages():
        kind = "linear" if event.key in LINEAR else "attention" if any(n in event.key for n in ATTENTION) else "rest"
        spent[kind] += event.self_cpu_time_total / 1000
    return {f"{kind}, ms": round(milliseconds, 1) for kind, milliseconds in spent.items()}


def photographs_of(settings: Int8Settings, size: int) -> Iterator[Tensor]:
    """Yield the middle squares of photographs, `(1, 3, size, size)` in [0, 1]."""
    for path in find_photographs(settings.photographs, NUM_PHOTOGRAPHS):
        image = decode_image(str(path), mode="RGB").float() / 255
        yield center_crop(resize(image, [size], antialias=True), [size]).clamp(0, 1)[None]


def measure_quality(settings: Int8Settings, student: Path, folder: Path) -> list[Row]:
    """Return a row for each precision: kNN and mIoU of a student, and cosines with float32 on photographs.

    Sizes that the student does not take become the largest that it does.
    """
    models = open_both(student)
    largest = largest_side(models["float32"].config)
    cosines: Row = {}
    for size in dict.fromkeys(min(size, largest) for size in settings.sizes):
        with torch.inference_mode():
            pairs = [
                mean_cosine(*(features_of(model, image) for model in models.values()))
                for image in photographs_of(settings, size)
            ]
        cosines |= {f"cosine at {size} px": round(sum(pairs) / len(pairs), 4), f"lowest at {size} px": min(pairs)}
    saved = folder / "int8"
    models["int8"].save_pretrained(saved)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if (student / name).is_file():
            (saved / name).write_bytes((student / name).read_bytes())
    return [
        {"precision": "float32", **evaluate(student, folder / "float32-features")},
        {"precision": "int8", **evaluate(saved, folder / "int8-features"), **cosines},
    ]


def evaluate(checkpoint: Path, cache: Path) -> Row:
    """Return what `training.evaluate` measures of a checkpoint on the demo's images: kNN and mIoU."""
    evaluation = EvaluationSettings(
        checkpoint=checkpoint,
        tasks=["knn", "segmentation_probe"],
        baselines=[],
        report=False,
        cache=cache,
        num_workers=0,
    )
    results, _ = run_evaluations(evaluation, evaluation.load_recipe())
    return {f"{each.task}, {each.metric}": round(each.value, 4) for each in results.measurements}


COMMAND = Command("benchmarks.int8", __doc__.partition("\n")[0], Int8Settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments, extra="int8")


def _measure_and_report(settings: Int8Settings) -> None:
    check_sizes(settings.preset, [*settings.sizes, *([] if settings.window_px is None else [settings.window_px])])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        RadioModel(RadioConfig.from_preset(settings.preset)).save_pretrained(folder / "random")
        models = open_both(folder / "random")
        rows = time_sizes(settings, models, folder)
        facts: dict[str, object] = {}
        if settings.window_px is not None:
            facts["windows"], facts["profile"] = time_windows(models, settings.window_px)
        del models
        quality = measure_quality(settings, settings.student, folder) if settings.student is not None else None
    for name, table in facts.items():
        print(f"\n{name}\n\n{table_of(table)}")
    report("int8", settings.preset, rows, facts=facts)
    if quality is not None and settings.student is not None:
        report("int8_quality", settings.student.name, quality)


if __name__ == "__main__":
    sys.exit(main())
