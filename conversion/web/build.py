"""Fills the folder of a page: graphs in the chosen precision, words, runtime, sample images."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from modeling_radio import RadioImageProcessor, RadioModel
from modeling_radio.conversion.graphs.files import open_graph
from modeling_radio.conversion.graphs.parity import compare_graph, require_difference
from modeling_radio.conversion.onnx_precision import convert_precision
from modeling_radio.conversion.web.plan import (
    LOGITS,
    PATCH_LOGITS,
    PagePlan,
    find_pool,
    keep_offered_positions,
    write_graphs,
)
from modeling_radio.conversion.web.precision import (
    PRECISIONS,
    Candidate,
    PrecisionChoice,
    WebPrecision,
    choose,
    describe,
    measure,
    refuse_size,
)
from modeling_radio.conversion.web.site import (
    SampleImage,
    copy_page,
    copy_runtime,
    copy_samples,
    write_description,
    write_space_card,
)
from modeling_radio.conversion.web.texts import Texts, write_tokenizer, write_tower
from modeling_radio.core.files import scratch_folder


LEAST_BYTES = 1024
"""Smaller tensors, such as shapes and axes, stay in the graph. Our choice."""
ALIGNMENT = 64
"""Tensors begin at multiples of so many bytes. Our choice: a line of the processor's cache."""
TOLERANCE = 1e-3
"""Largest accepted absolute difference of float32 features to PyTorch."""
PATIENCE_MS = 500
"""An image is first shown at the largest size that takes no longer. Our choice."""
WEIGHTS = "model.weights"


def share_weights(graphs: Sequence[Path], weights: Path) -> None:
    """Move the tensors of ONNX files into one file beside them, equal ones once, and leave out what a runtime infers.

    Shapes between the nodes are expressions of the open sizes: a megabyte for EfficientNet-Lite0.

    Args:
        graphs: Files with their weights inside; they are replaced by files without.
        weights: File to write, in the same folder.
    """
    import onnx
    from onnx import external_data_helper, numpy_helper

    offsets: dict[str, int] = {}
    with weights.open("wb") as file:
        for path in graphs:
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                data = numpy_helper.to_array(tensor).tobytes()
                if len(data) < LEAST_BYTES:
                    continue
                key = hashlib.sha256(data).hexdigest()
                if key not in offsets:
                    file.write(bytes(-file.tell() % ALIGNMENT))
                    offsets[key] = file.tell()
                    file.write(data)
                for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                    tensor.ClearField(field)  # pyrefly: ignore[bad-argument-type]
                tensor.raw_data = data
                external_data_helper.set_external_data(tensor, weights.name, offsets[key], len(data))
                tensor.ClearField("raw_data")
            model.graph.ClearField("value_info")
            path.write_bytes(model.SerializeToString())


def build_site(
    site: Path,
    model: RadioModel,
    texts: Texts | None,
    plan: PagePlan,
    runtime: Mapping[str, Path],
    samples: Sequence[SampleImage],
    precision: PrecisionChoice,
    title: str,
) -> None:
    """Fill an empty folder.

    Args:
        site: The folder.
        model: The page's model in float32. It is changed: its position table is cropped.
        texts: Its text side, if the page finds words.
        plan: Content of the page.
        runtime: Files by name, see `find_runtime`.
        samples: Sample images.
        precision: Precision of the weights; "auto" chooses by measurement.
        title: A line about the model.

    Raises:
        ValueError: If the exported graph is not the model.
    """
    (site / "model").mkdir()
    model.config.max_resolution = max(plan.sizes[-1], model.max_resolution)
    keep_offered_positions(model, [size // model.patch_size for size in plan.sizes])
    feeds = [{"pixel_values": _pixels(model, sample.path, plan.sizes[-1], plan.window_step)} for sample in samples]
    with scratch_folder(site) as scratch:
        wrapped = plan.wrap(model)
        graphs = write_graphs(wrapped, scratch)
        for name, path in graphs.items():
            require_difference(compare_graph(wrapped[name], open_graph(path), feeds), TOLERANCE)
        has_gpu = "ort.webgpu.min.mjs" in runtime
        wanted = _wanted(precision, has_gpu=has_gpu)
        found = measure({each: _convert(graphs["global"], each) for each in wanted}, feeds, runtime)
        chosen = _take(found, precision)
        tables = [describe(found, chosen, "model")]
        models = {}
        for backend in ("wasm", "webgpu"):
            if f"ort.{backend}.min.mjs" in runtime:
                taken = chosen.precision if backend == "wasm" else _for_gpu(found, chosen)
                models[backend] = _write_weights(graphs, taken, site)
        words = None
        if texts is not None and plan.text_space is not None:
            words, table = _write_texts(texts, plan, runtime, precision, scratch, site)
            tables.append(table)
    facts = {
        "title": title,
        "patch_size": model.patch_size,
        "step": plan.step,
        "window": None if plan.window is None else _describe_window(model, plan),
        "sizes": plan.sizes,
        "default_size": first_size(plan.sizes, chosen.milliseconds),
        "spaces": [asdict(space) for space in plan.spaces],
        "models": models,
        "texts": words,
        "names": None if plan.classifier is None else _describe_names(model),
        "runtime": copy_runtime(dict(runtime), site),
        "samples": copy_samples(samples, site),
    }
    copy_page(site)
    write_description(facts, site)
    measured = "\n\n".join(tables)
    write_space_card(title, measured, site)
    print(measured)


def _describe_window(model: RadioModel, plan: PagePlan) -> dict[str, Any]:
    blocks = model.config.num_hidden_layers
    windowed = blocks - len(model.config.global_blocks)
    return {"size": plan.window, "step": plan.window_step, "windowed_blocks": windowed, "blocks": blocks}


def _describe_names(model: RadioModel) -> dict[str, Any]:
    labels = model.config.id2label or {}
    patches = None if find_pool(model) is None else PATCH_LOGITS
    return {"output": LOGITS, "patches": patches, "labels": [labels[number] for number in range(len(labels))]}


def _pixels(model: RadioModel, path: Path, size: int, step: int) -> Tensor:
    processor = RadioImageProcessor.from_model_config(
        model.config, size={"longest_edge": size}, size_divisor=step, max_img_size=size
    )
    return processor(path, return_tensors="pt")["pixel_values"]  # pyrefly: ignore[bad-argument-type]


def _convert(path: Path, precision: WebPrecision) -> Path:
    """Convert a float32 file once, to a folder beside it; return the converted file, or the file itself for "fp32"."""
    if precision == "fp32":
        return path
    target = path.parent / precision / path.name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        convert_precision(path, target, precision)
    return target


def _wanted(precision: PrecisionChoice, *, has_gpu: bool = False) -> tuple[WebPrecision, ...]:
    """Return the candidate precisions, including one for WebGPU, which has no 8 bits."""
    if precision == "auto":
        return PRECISIONS
    of_gpu: tuple[WebPrecision, ...] = ("fp16",) if has_gpu and precision == "int8" else ()
    return tuple(dict.fromkeys(("fp32", *of_gpu, precision)))


def _take(found: Sequence[Candidate], precision: PrecisionChoice) -> Candidate:
    if precision == "auto":
        return choose(found)
    taken = next(each for each in found if each.precision == precision)
    if not taken.is_one_file:
        refuse_size([taken])
    return taken


def _for_gpu(found: Sequence[Candidate], chosen: Candidate) -> WebPrecision:
    """Return the precision for WebGPU: the chosen one, or the best other one in place of 8 bits, which it lacks."""
    if chosen.precision != "int8":
        return chosen.precision
    others = [each for each in found if each.precision != "int8"]
    return choose([Candidate(each.precision, each.path, each.agreement, None) for each in others]).precision


def _write_weights(graphs: Mapping[str, Path], precision: WebPrecision, site: Path) -> dict[str, Any]:
    """Copy graphs of one precision into the site, with their weights in one file; return their description."""
    folder = Path("model") / precision
    targets = {name: folder / path.name for name, path in graphs.items()}
    if not (site / folder).exists():
        (site / folder).mkdir()
        for name, path in graphs.items():
            shutil.copyfile(_convert(path, precision), site / targets[name])
        share_weights([site / target for target in targets.values()], site / folder / WEIGHTS)
    return {
        "precision": precision,
        "weights": f"{folder.as_posix()}/{WEIGHTS}",
        "graphs": {name: target.as_posix() for name, target in targets.items()},
        "bytes": sum((site / each).stat().st_size for each in (folder / WEIGHTS, targets["global"])),
    }


def _write_texts(
    texts: Texts, plan: PagePlan, runtime: Mapping[str, Path], precision: PrecisionChoice, scratch: Path, site: Path
) -> tuple[dict[str, Any], str]:
    """Write the text tower and its tokenizer; return their description and the table of precisions."""
    assert plan.text_space is not None
    tower = write_tower(texts, scratch / "texts.onnx")
    feeds = [{"input_ids": texts.sample_tokens}]
    require_difference(compare_graph(tower, open_graph(scratch / "texts.onnx"), feeds), TOLERANCE)
    found = measure({each: _convert(scratch / "texts.onnx", each) for each in _wanted(precision)}, feeds, runtime)
    chosen = _take(found, precision)
    table = describe(found, chosen, "words")
    target = chosen.path.rename(site / "model" / "texts.onnx")
    write_tokenizer(texts.tokenizer, site / "model" / "tokenizer")
    facts = {
        "graph": "model/texts.onnx",
        "tokenizer": "model/tokenizer",
        "precision": chosen.precision,
        "bytes": target.stat().st_size,
        "output": plan.text_space.output,
        "upsample": plan.text_space.scale,
        **texts.describe(),
    }
    return facts, table


def first_size(sizes: Sequence[int], milliseconds: float | None) -> int:
    """Return the size at which an image is first shown: the largest quick one, by the time of the largest size."""
    if milliseconds is None:
        return sizes[(len(sizes) - 1) // 2]
    quick = [size for size in sizes if milliseconds * (size / sizes[-1]) ** 2 <= PATIENCE_MS]
    return max(quick, default=sizes[0])
