"""From a module of tensors to an ONNX program, by PyTorch's exporter."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import ONNXProgram
from transformers.utils.import_utils import is_torch_greater_or_equal


DEFAULT_OPSET = 20
"""Oldest operator set that has GELU as one operator."""


def require_exporter() -> None:
    """Refuse a torch whose exporter fails at networks of any size.

    Raises:
        ValueError: With the version that there is.
    """
    if not is_torch_greater_or_equal("2.7"):
        raise ValueError(f"Exported graphs need torch 2.7 or newer, and this is {torch.__version__}. Upgrade torch.")


def export_graph(
    module: nn.Module, inputs: Mapping[str, Tensor], names: Sequence[str], shapes: Any, opset: int = DEFAULT_OPSET
) -> ONNXProgram:
    """Return a module as an ONNX program; nothing is written.

    Args:
        module: In evaluation mode, with a tensor or a tuple of them as its output.
        inputs: Examples in the order of its arguments, by the names that the graph gives them.
        names: Of the outputs.
        shapes: Which dimensions of the inputs are open, as `torch.export` wants it.
        opset: ONNX operator set.

    Raises:
        ValueError: If the exporter does not know the operator set, or torch is too old.
    """
    require_exporter()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes about its own rewriting
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
