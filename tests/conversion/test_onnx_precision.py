"""Files in float16 and 8 bits: their weights, their inputs and outputs, and what they answer."""

import numpy as np
import pytest

from modeling_radio.conversion.onnx_precision import convert_precision


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
TYPES = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}


@pytest.fixture
def source(tmp_path):
    """A linear layer, then a product of activations as attention has it: `(batch, 3, 64)` to `(batch, 3, 3)`."""
    random = np.random.default_rng(0)
    # Channels of very different size, as a scale for each is there for.
    weight = random.normal(size=(64, 32)).astype(np.float32) * np.geomspace(0.01, 1, 32, dtype=np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "weight"], ["hidden"], name="linear"),
        onnx.helper.make_node("Transpose", ["hidden"], ["turned"], perm=[0, 2, 1], name="turn"),
        onnx.helper.make_node("MatMul", ["hidden", "turned"], ["scores"], name="attention"),
    ]
    floats = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info("x", floats, ["batch", 3, 64])]
    outputs = [
        onnx.helper.make_tensor_value_info("hidden", floats, ["batch", 3, 32]),
        onnx.helper.make_tensor_value_info("scores", floats, ["batch", 3, 3]),
    ]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, [onnx.numpy_helper.from_array(weight, "weight")])
    path = tmp_path / "source.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def run(path, inputs):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": inputs})


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_weights_change_and_inputs_and_outputs_stay(precision, tolerance, source, tmp_path, caplog):
    convert_precision(source, tmp_path / "out.onnx", precision)
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert [each.data_type for each in graph.initializer if each.dims == [64, 32]] == [TYPES[precision]]
    assert {each.type.tensor_type.elem_type for each in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert [each.type.tensor_type.shape.dim[0].dim_param for each in graph.input] == ["batch"]
    inputs = np.random.default_rng(1).normal(size=(5, 3, 64)).astype(np.float32)
    for expected, output in zip(run(source, inputs), run(tmp_path / "out.onnx", inputs), strict=True):
        error = np.abs(output - expected).max() / np.abs(expected).max()
        assert 0 < error < tolerance
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.onnx", "source.onnx"]
    assert not caplog.records


def test_attention_is_not_quantized(source, tmp_path):
    convert_precision(source, tmp_path / "out.onnx", "int8")
    operators = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert (operators.count("MatMul"), operators.count("MatMulInteger")) == (1, 1)
    with pytest.raises(ValueError, match="`precision`"):
        convert_precision(source, tmp_path / "out.onnx", "int4")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_many_weights_go_to_a_file_beside(precision, source, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_radio.conversion.graphs.files.EXTERNAL_DATA_BYTES", 0)
    (tmp_path / "out").mkdir()
    convert_precision(source, tmp_path / "out" / "model.onnx", precision)
    graph, weights = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert graph == "model.onnx"
    assert weights.startswith("model.onnx.")
    inputs = np.ones((1, 3, 64), np.float32)
    expected = run(source, inputs)[0]
    assert np.abs(run(tmp_path / "out" / "model.onnx", inputs)[0] - expected).max() < 0.02 * np.abs(expected).max()


def test_convolutions_and_layers_that_share_weights_are_8_bits_in_the_file(tmp_path):
    random = np.random.default_rng(0)
    weights = {
        "wide": random.normal(size=(16, 8, 3, 3)) * np.geomspace(0.01, 1, 16)[:, None, None, None],
        "depthwise": random.normal(size=(16, 1, 3, 3)),  # nine terms in a sum
        "shared": random.normal(size=(6, 6)),
    }
    weights["wide"][0] = 0  # a channel without a scale
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "wide"], ["a"], pads=[1, 1, 1, 1]),
        node("Conv", ["a", "depthwise"], ["b"], pads=[1, 1, 1, 1], group=16),
        node("Transpose", ["shared"], ["turned"], perm=[1, 0]),  # as the exporter leaves what two layers share
        node("MatMul", ["b", "turned"], ["c"]),
        node("MatMul", ["c", "turned"], ["y"]),
    ]
    value = lambda name, shape: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)  # noqa: E731
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", [1, 8, 6, 6])], [value("y", [1, 16, 6, 6])], tensors)
    path = tmp_path / "in.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    convert_precision(path, tmp_path / "out.onnx", "int8")
    found = onnx.load(tmp_path / "out.onnx").graph
    types = {tuple(each.dims): each.data_type for each in found.initializer if len(each.dims) > 1 and each.dims[1] != 1}
    assert types == {(16, 8, 3, 3): onnx.TensorProto.INT8, (6, 6): onnx.TensorProto.INT8}
    assert [node.op_type for node in found.node].count("MatMulInteger") == 2
    inputs = random.normal(size=(1, 8, 6, 6)).astype(np.float32)
    expected, output = (run(each, inputs)[0] for each in (path, tmp_path / "out.onnx"))
    assert 0 < np.abs(output - expected).max() < 0.05 * np.abs(expected).max()
