import base64
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from training.teachers.embedded import TfjsGraph


def text(value: str) -> dict:
    return {"s": base64.b64encode(value.encode()).decode()}


def integers(*values: int) -> dict:
    return {"list": {"i": [str(value) for value in values]}}


@pytest.fixture
def constants() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "to_nhwc": np.array([0, 2, 3, 1], np.int32),
        "to_nchw": np.array([0, 3, 1, 2], np.int32),
        "paddings": np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32),
        "kernel": random.normal(size=(3, 3, 2, 5)).astype(np.float16),
        "bias": random.normal(size=5).astype(np.float16),
        "size": np.array([8, 8], np.int32),
        "axis": np.array(-1, np.int32),
    }


def operation(name: str, op: str, inputs: list[str], **attributes) -> dict:
    return {"name": name, "op": op, "input": inputs, "attr": attributes}


def write_graph(folder, constants, extra=()):
    """Write a model: pad, convolve with stride 2, add, leaky ReLU, resize to twice the size, join with its input."""
    shape = {"shape": {"shape": {"dim": [{"size": "1"}, {"size": "2"}, {"size": "8"}, {"size": "8"}]}}}
    nodes = [operation("image", "Placeholder", [], **shape)]
    nodes += [operation(name, "Const", []) for name in constants]
    nodes += [
        operation("nhwc", "Transpose", ["image", "to_nhwc"]),
        operation("padded", "Pad", ["nhwc", "paddings"]),
        operation(
            "convolved",
            "Conv2D",
            ["padded", "kernel"],
            strides=integers(1, 2, 2, 1),
            dilations=integers(1, 1, 1, 1),
            padding=text("VALID"),
        ),
        operation("added", "Add", ["convolved:0", "bias"]),
        operation("active", "LeakyRelu", ["added"], alpha={"f": 0.1}),
        operation("large", "ResizeBilinear", ["active", "size"], half_pixel_centers={"b": True}),
        operation("joined", "ConcatV2", ["large", "nhwc", "axis"]),
        operation("answer", "Transpose", ["joined", "to_nchw"]),
        *extra,
    ]
    weights, data = [], b""
    for name, value in constants.items():
        is_float = value.dtype == np.float16
        entry = {"name": name, "shape": list(value.shape), "dtype": "float32" if is_float else "int32"}
        weights.append(entry | ({"quantization": {"dtype": "float16"}} if is_float else {}))
        data += value.tobytes()
    (folder / "model.bin").write_bytes(data)
    manifest = [{"paths": ["model.bin"], "weights": weights}]
    path = folder / "model.json"
    path.write_text(json.dumps({"modelTopology": {"node": nodes}, "weightsManifest": manifest}))
    return path


@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_a_graph_equals_the_same_steps_in_torch(tmp_path, constants, size):
    graph = TfjsGraph(write_graph(tmp_path, constants), ["answer", "active"])
    image = torch.randn(3, 2, *size)
    kernel = torch.from_numpy(constants["kernel"]).float().permute(3, 2, 0, 1)
    bias = torch.from_numpy(constants["bias"]).float()
    active = F.leaky_relu(F.conv2d(image, kernel, bias, stride=2, padding=1), 0.1)
    large = F.interpolate(active, size, mode="bilinear", align_corners=False)
    answer, middle = graph(image)
    torch.testing.assert_close(answer, torch.cat([large, image], 1))
    torch.testing.assert_close(middle, active.permute(0, 2, 3, 1))
    assert not list(graph.parameters())


def test_an_unknown_operation_is_refused_by_name_where_it_is_needed(tmp_path, constants):
    path = write_graph(tmp_path, constants, [operation("odd", "Einsum", ["active"])])
    TfjsGraph(path, ["answer"])
    with pytest.raises(ValueError, match=r"model\.json: operations Einsum are not supported"):
        TfjsGraph(path, ["odd"])


def test_a_missing_output_is_refused(tmp_path, constants):
    with pytest.raises(ValueError, match="no node called nothing"):
        TfjsGraph(write_graph(tmp_path, constants), ["answer", "nothing"])
