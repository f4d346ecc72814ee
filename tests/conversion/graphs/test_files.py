"""What a written ONNX file says, and the weights beside it."""

import re

import numpy as np
import pytest

from modeling_radio.conversion.graphs.files import remove_stale_weights, write_graph


onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnxscript").ir


@pytest.fixture
def graph():
    node = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"], name="linear", doc_string="of somebody")
    node.metadata_props.add(key="stack_trace", value='File "somebody/model.py"')
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 16]) for name in "xy"]
    weight = onnx.numpy_helper.from_array(np.eye(16, dtype=np.float32), "weight")
    return ir.from_proto(
        onnx.helper.make_model(onnx.helper.make_graph([node], "graph", values[:1], values[1:], [weight]))
    )


def test_a_file_says_nothing_of_the_machine_that_wrote_it(graph, tmp_path):
    write_graph(graph, tmp_path / "model.onnx")
    assert b"somebody" not in (tmp_path / "model.onnx").read_bytes()
    assert onnx.load(tmp_path / "model.onnx").graph.node[0].name == "linear"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_stale_weights_go_and_others_stay(graph, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_radio.conversion.graphs.files.EXTERNAL_DATA_BYTES", 0)
    path = tmp_path / "model.onnx"
    write_graph(graph, path)
    (first,) = tmp_path.glob("*.data")
    assert re.fullmatch(r"model\.onnx\.[0-9a-f]{8}\.data", first.name)
    (tmp_path / "model.onnx.data").write_text("mine")
    ir.external_data.load_to_model(graph)
    write_graph(graph, path)
    remove_stale_weights(path)
    left = {file.name for file in tmp_path.iterdir()}
    assert first.name not in left
    assert {"model.onnx", "model.onnx.data"} < left
    assert len(left) == 3
    assert (onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]) == np.eye(16)).all()
