"""Precisions of a page, and graphs that share a file of weights."""

import numpy as np
import pytest

from modeling_radio.conversion.web.build import share_weights


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
VALUES = np.random.default_rng(0).random((32, 32), dtype=np.float32)


def write(path, factor, *, typed=False):
    """Write a graph that multiplies by shared weights, then by a number of its own."""
    from onnx import TensorProto, helper, numpy_helper

    shared = numpy_helper.from_array(VALUES, "w")
    if typed:  # numbers in a list of their own, as some writers leave them
        shared = helper.make_tensor("w", TensorProto.FLOAT, VALUES.shape, VALUES.flatten().tolist())
    own = numpy_helper.from_array(np.array(factor, dtype=np.float32), "f")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "f"], ["y"])]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32])  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], [shared, own], value_info=[value("h")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_equal_weights_are_there_once_and_outputs_stay(tmp_path):
    graphs = [write(tmp_path / "a.onnx", 2), write(tmp_path / "b.onnx", 3, typed=True)]
    weights = tmp_path / "model.weights"
    share_weights(graphs, weights)
    assert weights.stat().st_size == VALUES.nbytes
    x = np.ones((1, 32), dtype=np.float32)
    for path, factor in zip(graphs, (2, 3), strict=True):
        assert path.stat().st_size < 1000
        assert not onnx.load(path, load_external_data=False).graph.value_info
        (y,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        np.testing.assert_allclose(y, factor * x @ VALUES, rtol=1e-5)
    model = onnx.load(write(tmp_path / "b.onnx", 3))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(VALUES + 1, "w"))
    onnx.save(model, tmp_path / "b.onnx")
    share_weights([write(tmp_path / "a.onnx", 2), tmp_path / "b.onnx"], weights)
    assert weights.stat().st_size == 2 * VALUES.nbytes  # others get places of their own
