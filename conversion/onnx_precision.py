"""Converts an exported ONNX file to half precision or 8 bits with onnxruntime's tools."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modeling_radio.conversion.graphs.files import write_graph
from modeling_radio.conversion.graphs.settings import GraphPrecision
from modeling_radio.core.files import scratch_folder


LEAST_COSINE: dict[GraphPrecision, float] = {"fp16": 0.999, "int8": 0.995}
"""Mean cosine with float32 below which an output is refused. Our choice: float16 keeps more with room to spare, and
features may lose this much in 8 bits."""

_INT8_OPERATORS = ["MatMul"]  # linear layers, as the exporter writes them


def convert_precision(source: Path, output: Path, precision: GraphPrecision) -> None:
    """Write an ONNX file in another precision; inputs and outputs stay float32.

    - "fp16" (`onnxruntime.transformers.float16`): weights and operators in float16, half the file. For GPUs and WebGPU:
      a CPU has few such operators, and casts around the others.
    - "int8" (`onnxruntime.quantization.quantize_dynamic`): weights of linear layers are int8 with one scale for each
      output channel, their inputs uint8 with a scale computed for each tensor; attention stays float32. A
      quarter of the file. For CPUs and WASM.

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
            _quantize(source, scratch / "int8.onnx")
            graph = ir.load(scratch / "int8.onnx")
            ir.external_data.load_to_model(graph)
    graph.metadata_props.clear()
    graph.metadata_props.update(ir.load(source).metadata_props)
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


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the advice to optimize the graph first: sessions do that for their own machine."""
    is_wanted = lambda record: "pre-processing before quantization" not in record.getMessage()  # noqa: E731
    logging.root.addFilter(is_wanted)
    try:
        yield
    finally:
        logging.root.removeFilter(is_wanted)
