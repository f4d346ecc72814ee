import numpy as np
import pytest
import torch
from packaged import build_packaged

from training.teachers import embedded
from training.teachers.embedded import convert_once, read_backbone


onnx = pytest.importorskip("onnx")


@pytest.fixture
def onnx_path(tmp_path):
    """Write a file with the exporter's habits: an anonymous transposed weight, a split position table."""
    random = np.random.default_rng(0)
    tensors = {
        "backbone.layernorm.weight": random.normal(size=384),
        "onnx::MatMul_7": random.normal(size=(384, 8)),
        "onnx::Concat_9": random.normal(size=(1, 1, 384)),
        "positions": random.normal(size=(1, 1369, 384)),
        "decoder.final.weight": random.normal(size=3),
    }
    node = onnx.helper.make_node(
        "MatMul", ["hidden", "onnx::MatMul_7"], ["y"], name="/backbone/encoder/layer.0/mlp/fc1/MatMul"
    )
    initializers = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()]
    graph = onnx.helper.make_graph([node], "graph", [], [], initializers)
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    return path, tensors


def test_weights_get_the_names_and_layout_of_transformers(onnx_path):
    path, tensors = onnx_path
    weights = read_backbone(path)
    assert set(weights) == {
        "layernorm.weight",
        "encoder.layer.0.mlp.fc1.weight",
        "embeddings.position_embeddings",
        "embeddings.mask_token",
    }
    expected = torch.from_numpy(tensors["onnx::MatMul_7"].T.astype(np.float32))
    assert torch.equal(weights["encoder.layer.0.mlp.fc1.weight"], expected)
    table = weights["embeddings.position_embeddings"]
    assert table.shape == (1, 1370, 384)
    assert torch.equal(table[:, :1], torch.from_numpy(tensors["onnx::Concat_9"].astype(np.float32)))


def test_a_conversion_is_done_once_and_never_half(onnx_path, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    path, _ = onnx_path
    folder = tmp_path / "converted" / "model"
    with monkeypatch.context() as broken:
        broken.setattr(embedded, "dinov2_config", fail)
        with pytest.raises(KeyboardInterrupt):
            convert_once(path, folder)
    assert not folder.exists()
    assert sorted(file.name for file in convert_once(path, folder).iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    path.unlink()
    assert convert_once(path, folder) == folder


@pytest.mark.packages
def test_a_layer_is_the_hidden_state_of_that_number():
    deep, shallow = build_packaged("dinov2-s-saliency", layer=4), build_packaged("dinov2-s-saliency", layer=2)
    pixel_values = torch.rand(1, 3, 64, 64)
    normalized = (
        torch.nn.functional.interpolate(pixel_values, (56, 56), mode="bicubic", antialias=True).clamp(0, 1) - deep.mean
    ) / deep.std
    states = deep.network(normalized, output_hidden_states=True).hidden_states
    assert len(states) == 5
    torch.testing.assert_close(shallow.answer(pixel_values).summary, states[2][:, 0])
