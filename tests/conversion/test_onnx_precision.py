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
