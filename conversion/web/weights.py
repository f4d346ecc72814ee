"""Graphs of one network that share a file of weights, so that a browser loads them once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path


LEAST_BYTES = 1024
"""Smaller tensors stay in the graph, where shapes and axes must be. Our choice."""
ALIGNMENT = 64
"""Bytes that tensors begin at multiples of; our choice: a line of the processor's cache."""


def share_weights(graphs: Sequence[Path], weights: Path) -> None:
    """Move the tensors of ONNX files into one file beside them, equal ones once.

    Args:
        graphs: Files with their weights inside; they are written again, without.
        weights: File to write, in the same folder.
    """
    import onnx
    from onnx import external_data_helper, numpy_helper

    places: dict[str, int] = {}
    with weights.open("wb") as file:
        for path in graphs:
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                data = numpy_helper.to_array(tensor).tobytes()
                if len(data) < LEAST_BYTES:
                    continue
                key = hashlib.sha256(data).hexdigest()
                if key not in places:
                    file.write(bytes(-file.tell() % ALIGNMENT))
                    places[key] = file.tell()
                    file.write(data)
                for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                    tensor.ClearField(field)  # pyrefly: ignore[bad-argument-type]
                tensor.raw_data = data
                external_data_helper.set_external_data(tensor, weights.name, places[key], len(data))
                tensor.ClearField("raw_data")
            path.write_bytes(model.SerializeToString())
