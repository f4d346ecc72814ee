"""Converts an exported ONNX file to half precision or 8 bits with onnxruntime's tools."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modeling_radio.conversion.graphs.files import EXTERNAL_DATA_BYTES, write_graph
from modeling_radio.conversion.graphs.settings import GraphPrecision
from modeling_radio.core.files import scratch_folder


if TYPE_CHECKING:
    from onnxscript import ir


LEAST_COSINE: dict[GraphPrecision, float] = {"fp16": 0.999, "int8": 0.995}
"""Mean cosine with float32 below which an output is refused. Our choice: float16 keeps more with room to spare, and
features may lose this much in 8 bits."""

INT8_LARGEST = 127
LEAST_TERMS = 32
"""Convolutions with fewer weights for an output channel stay float32. Our choice: they are small, and in short sums
rounding averages out less. So the first and the depthwise ones of EfficientNet-Lite0 do: .9988 instead of .9951."""
_INT8_OPERATORS = ["MatMul"]  # linear layers, as the exporter writes them


def convert_precision(source: Path, output: Path, precision: GraphPrecision) -> None:
    """Write an ONNX file in another precision; inputs and outputs stay float32.

    - "fp16" (`onnxruntime.transformers.float16`): weights and operators in float16, half the file. For GPUs and WebGPU:
      a CPU has few such operators, and casts around the others.
    - "int8" (`onnxruntime.quantization.quantize_dynamic`): weights of linear layers are int8 with one scale for each
      output channel, their inputs uint8 with a scale computed for each tensor; attention stays float32. Convolutions
      are computed in float32, with weights that are int8 in the file. A quarter of the file. For CPUs and WASM.

    Args:
        source: Float32 file. Its folder must be writable: onnxruntime infers shapes in a file there.
        output: File to write; more than 2 GB of weights go to another one beside it.
        precision: "fp16" or "int8".

    Raises:
        ValueError: If `precision` is unknown.
    """
    from onnxscript import ir

    if precision not in LEAST_COSINE:
        raise ValueError(f"`precision` must be one of {', '.join(LEAST_COSINE)}, got {precision!r}.")
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        graph = ir.from_proto(convert_float_to_float16(str(source), keep_io_types=True))
    else:
        with scratch_folder(output.parent) as scratch:
            _fold_transposes(source, scratch / "fp32.onnx")
            _quantize(scratch / "fp32.onnx", scratch / "int8.onnx")
            graph = ir.load(scratch / "int8.onnx")
            ir.external_data.load_to_model(graph)
            _store_convolutions(graph.graph)
    graph.metadata_props.clear()
    graph.metadata_props.update(ir.load(source).metadata_props)
    write_graph(graph, output)


def _fold_transposes(source: Path, output: Path) -> None:
    """Transpose weights in the file: the exporter leaves it to the graph where layers share them.

    The tool for 8 bits only sees weights that are constants.
    """
    from onnxscript import ir, optimizer

    graph = ir.load(source)
    optimizer.fold_constants(
        graph,
        onnx_shape_inference=False,
        output_size_limit=EXTERNAL_DATA_BYTES,
        should_fold=lambda node: node.op_type == "Transpose",
    )
    write_graph(graph, output)


def _quantize(source: Path, output: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _without_advice():
        quantize_dynamic(
            onnx.load(source),
            output,
            op_types_to_quantize=_INT8_OPERATORS,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )


def _store_convolutions(graph: ir.Graph) -> None:
    """Store weights of convolutions as int8 with one scale for each output channel.

    They are multiplied by it with Cast and Mul: onnxruntime does so once, when it opens the file. It would compute a
    DequantizeLinear in each pass.
    """
    from onnxscript import ir

    stored: dict[str, ir.Value] = {}
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is None or weight.name not in graph.initializers or weight.const_value is None:
            continue
        values = weight.const_value.numpy()
        if values[0].size < LEAST_TERMS:
            continue
        if weight.name not in stored:
            scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True) / INT8_LARGEST
            scale[scale == 0] = 1
            arrays = {f"{weight.name}_int8": np.rint(values / scale).astype(np.int8), f"{weight.name}_scale": scale}
            parts = [ir.Value(name=name, const_value=ir.tensor(array)) for name, array in arrays.items()]
            for part in parts:
                graph.register_initializer(part)
            read = ir.Node("", "Cast", parts[:1], attributes=[ir.AttrInt64("to", ir.DataType.FLOAT)])
            scaled = ir.Node("", "Mul", [read.outputs[0], parts[1]])
            graph.insert_before(node, [read, scaled])
            stored[weight.name] = scaled.outputs[0]
        node.replace_input_with(1, stored[weight.name])
        if not weight.uses():
            del graph.initializers[weight.name]


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the advice to optimize the graph first: sessions do that for their own machine."""
    is_wanted = lambda record: "pre-processing before quantization" not in record.getMessage()  # noqa: E731
    logging.root.addFilter(is_wanted)
    try:
        yield
    finally:
        logging.root.removeFilter(is_wanted)
