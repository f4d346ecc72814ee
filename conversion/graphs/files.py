"""Exports modules to ONNX, writes the files with weights inside or beside them, and opens them in onnxruntime."""

import re
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.onnx import ONNXProgram
from transformers.utils.import_utils import is_torch_greater_or_equal

from modeling_radio.conversion.graphs.sampling import GatheredSamples
from modeling_radio.conversion.graphs.settings import DEFAULT_OPSET


if TYPE_CHECKING:
    from onnxscript import ir


RunGraph = Callable[[Mapping[str, Tensor]], list[Tensor]]
"""Runs a graph on inputs by name, and returns all outputs in their order."""
EXTERNAL_DATA_BYTES = 2 * 1024**3
"""Largest protobuf file: the weights of a larger one go to a file beside it."""


def require_exporter() -> None:
    """Refuse a torch whose exporter fails at open image sizes.

    Raises:
        ValueError: If torch is too old.
    """
    if not is_torch_greater_or_equal("2.7"):
        raise ValueError(f"Exported graphs need torch 2.7 or newer, and this is {torch.__version__}. Upgrade torch.")


def export_graph(
    module: nn.Module, inputs: Mapping[str, Tensor], names: Sequence[str], shapes: Any, opset: int = DEFAULT_OPSET
) -> ONNXProgram:
    """Return a module as an ONNX program, without the operator GridSample; nothing is written.

    Args:
        module: In evaluation mode, with a tensor or a tuple of them as its output.
        inputs: Examples in the order of its arguments, by their names in the graph.
        names: Names of the outputs.
        shapes: Open dimensions of the inputs, as for `torch.export`.
        opset: ONNX operator set.

    Raises:
        ValueError: If the exporter does not know the operator set, or torch is too old.
    """
    require_exporter()
    with torch.no_grad(), GatheredSamples(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the exporter about its own rewriting
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(names),
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None  # the old exporter alone returns nothing
    if program.model.opset_imports[""] != opset:  # the exporter only warns
        raise ValueError(
            f"`opset` must be one that PyTorch can export to, got {opset}: it wrote {program.model.opset_imports['']}."
        )
    return program


def write_graph(graph: "ir.Model", path: Path) -> None:
    """Write an ONNX model without the exporter's notes about source files and folders.

    More than 2 GB of weights go to `NAME.xxxxxxxx.data` beside the file. That name is new each time, so that an older
    model keeps its own weights until the new one replaces it.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import ir

    ClearMetadataAndDocStringPass()(graph)
    tensors = (value.const_value for value in graph.graph.initializers.values())
    num_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    is_large = num_bytes > EXTERNAL_DATA_BYTES
    ir.save(graph, path, external_data=f"{path.name}.{secrets.token_hex(4)}.data" if is_large else None)


def open_graph(path: Path, num_threads: int = 0) -> RunGraph:
    """Open a file with onnxruntime on the CPU, with so many threads; 0 leaves their number to it.

    The returned function raises a `ValueError` where onnxruntime fails.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        try:
            outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        except Exception as error:  # onnxruntime's errors have no other class in common
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
            reason = " ".join(str(error).split())
            raise ValueError(
                f"onnxruntime cannot run the graph for {shapes}: {reason:.200}. If the network depends on the size of "
                "the image, as Swin's windows do, give `fixed_size`."
            ) from error
        return [torch.from_numpy(output) for output in outputs]

    return run


def find_weights(path: Path) -> list[Path]:
    """Return the files of weights beside an exported file, also those of older or killed exports."""
    pattern = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}\.data")
    return [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]


def remove_stale_weights(path: Path) -> None:
    """Remove the files of weights beside an exported file that it does not use."""
    from onnxscript import ir

    found = find_weights(path)
    if found:
        weights = ir.load(path).graph.initializers.values()
        used = {value.const_value.location for value in weights if isinstance(value.const_value, ir.ExternalTensor)}
        for file in found:
            if file.name not in used:
                file.unlink()
