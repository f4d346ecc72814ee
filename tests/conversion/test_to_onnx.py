"""The exported graph gives the model's outputs at any batch, height and width."""

import json

import numpy as np
import onnx
import pytest
import torch
from releases import needs_exporter
from safetensors.torch import load_file, save_file
from task_models import build
from tiny_eradio import build_eradio
from tiny_navit import build_navit
from tiny_networks import build_wrapped
from tiny_radio1d import build_radio1d

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.export import main
from modeling_radio.conversion.graphs.files import open_graph
from modeling_radio.conversion.to_onnx import check_onnx, export_onnx, save_onnx
from modeling_radio.model_cards.metadata import pipeline_tag


pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = needs_exporter


def open_session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def metadata_of(session):
    return {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}


HEAD = {"summary_dim": 12, "feature_dim": 8, "hidden_size": 16}
ADAPTORS = [
    {"name": "siglip2-g", **HEAD, "feature_head": "attention"},
    {"name": "sam3", "token_index": 2, **HEAD, "upsample_factor": 2},
]
FIVE_CHANNELS = {"num_channels": 5, "norm_mean": [0.1, 0.2, 0.3, 0.4, 0.5], "norm_std": [0.5, 0.4, 0.3, 0.2, 0.1]}
HEADS = {
    "own": {"num_layers": 1, "num_heads": 2},
    "divided": {"num_layers": 1, "num_heads": 2, "target_grid": [2, 3], "align_corners": False},
}
OF_HEADS = [{"name": name, **HEAD} for name in HEADS]
OUTPUTS = [*("summary", "features", "siglip2-g_summary", "siglip2-g_features"), *("sam3_summary", "sam3_features")]


def tiny(**overrides):
    return RadioConfig.from_preset("radio-test", num_hidden_layers=2, vitdet_num_global=1, **overrides)


def save_tiny(folder, **overrides):
    RadioModel(tiny(**overrides)).save_pretrained(folder)
    return folder


TASKS = {
    "classifier": ["logits"],
    "linear segmenter": ["logits"],
    "DPT segmenter": ["logits"],
    "depth": ["predicted_depth"],
    "detector": ["logits", "pred_boxes"],
    "instance segmenter": ["logits", "pred_boxes", "pred_masks"],
    "universal segmenter": ["class_queries_logits", "masks_queries_logits", "pred_boxes"],
}


@pytest.mark.slow
@pytest.mark.parametrize("opset", [99])
def test_an_operator_set_that_the_exporter_does_not_know_is_refused(opset, tmp_path):
    model = RadioModel.from_pretrained(save_tiny(tmp_path / "in"))
    with pytest.raises(ValueError, match=f"`opset` .*{opset}"):
        export_onnx(model, opset=opset)


@pytest.mark.slow
def test_a_changed_graph_is_noticed(tmp_path):
    model = RadioModel.from_pretrained(save_tiny(tmp_path / "in")).eval()
    wrapped, program = export_onnx(model)
    save_onnx(program, tmp_path / "out.onnx")
    with torch.no_grad():
        model.radio_model.model.patch_generator.pos_embed += 1
    assert check_onnx(wrapped, tmp_path / "out.onnx")["features"].largest_difference > 0.1
    with pytest.raises(ValueError, match="fixed_size"):  # what onnxruntime refuses
        open_graph(tmp_path / "out.onnx")({"pixel_values": torch.rand(1, 4, 32, 32)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build_model", "flags", "step"),
    [
        (lambda: RadioModel(tiny(adaptors=ADAPTORS)), [], 16),
        (lambda: RadioModel(tiny(adaptors=ADAPTORS)), ["--window-size", "2"], 32),
        (lambda: RadioModel(tiny(adaptors=ADAPTORS, video_temporal_patch_size=2)), [], 16),
        (lambda: RadioModel(tiny(use_cropped_positions=False, **FIVE_CHANNELS)), [], 16),
        (build_eradio, [], 128),
        (build_eradio, ["--window-size", "2"], 64),
        (build_radio1d, [], 16),
        (lambda: build_navit(max_img_size=64), ["--window-size", "2"], 8),
        (lambda: build_navit({"pool_type": "attn_qknorm", "heads": HEADS}, max_img_size=64, adaptors=OF_HEADS), [], 4),
        (lambda: build_wrapped("ConvNeXt"), [], 32),
        (lambda: build_wrapped("ResNet"), [], 32),
    ],
)
def test_every_network_is_exported_for_sizes_that_its_windows_divide(build_model, flags, step, tmp_path, capsys):
    """The command compares all outputs at several sizes."""
    model = build_model().eval()
    model.save_pretrained(tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out.onnx"), *flags]) == 0
    assert f"multiples of {step} px" in capsys.readouterr().out
    session, images = open_session(tmp_path / "out.onnx"), torch.rand(3, model.config.num_channels, step, 3 * step)
    names = [entry.name for entry in session.get_outputs()]
    assert [entry.name for entry in session.get_inputs()] == ["pixel_values"]
    assert names == OUTPUTS or "sam3" not in (model.config.adaptor_names or [])
    with torch.no_grad():
        expected = model(images, window_size=int(flags[1]) if flags else None).features
    outputs = dict(zip(names, session.run(names, {"pixel_values": images.numpy()}), strict=True))
    torch.testing.assert_close(torch.from_numpy(outputs["features"]), expected, rtol=0, atol=1e-4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "largest_part", "tolerance"), [("fp16", 0.6, 0.01), ("int8", 0.9, 0.1)])
def test_other_precisions(precision, largest_part, tolerance, tmp_path, capsys):
    source = save_tiny(tmp_path / "in", adaptors=ADAPTORS)
    model = RadioModel.from_pretrained(source).eval()
    save_onnx(export_onnx(model)[1], tmp_path / "fp32.onnx")
    words = [str(source), str(tmp_path / "out.onnx"), "--precision", precision]
    assert main([*words, "--least-cosine", "1"]) == 1
    assert "less than 1: this precision" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fp32.onnx", "in"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert [line.split()[0] for line in lines] == OUTPUTS
    assert all(0.998 < float(line.split()[2]) <= 1 for line in lines)
    assert (tmp_path / "out.onnx").stat().st_size < largest_part * (tmp_path / "fp32.onnx").stat().st_size
    metadata = metadata_of(open_session(tmp_path / "out.onnx"))
    assert metadata["task"] == "image-feature-extraction"
    assert metadata["size_step"] == 16 * (model.config.vitdet_window_size or 1)
    assert metadata["largest_size"] % metadata["size_step"] == 0
    assert metadata["preferred_size"] == list(model.config.preferred_resolution)
    assert "id2label" not in metadata
    images = torch.rand(3, 3, 96, 160)
    (features,) = open_session(tmp_path / "out.onnx").run(["features"], {"pixel_values": images.numpy()})
    with torch.no_grad():
        assert 1e-4 < (torch.from_numpy(features) - model(images).features).abs().amax() < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_heads_of_tasks_by_the_names_of_their_outputs(task, tmp_path, capsys):
    torch.manual_seed(0)
    model, is_detector = build(task), "pred_boxes" in TASKS[task]
    model.save_pretrained(tmp_path / "in")
    words = [str(tmp_path / "in"), str(tmp_path / "out.onnx"), "--head"]
    assert main([*words, *(["--fixed-size", "80,112"] if is_detector else [])]) == 0
    assert "LOAD REPORT" not in capsys.readouterr().err
    session = open_session(tmp_path / "out.onnx")
    names = [entry.name for entry in session.get_outputs()]
    assert names == TASKS[task]
    metadata = metadata_of(session)
    assert metadata["task"] == pipeline_tag(model.config)
    assert metadata.get("id2label") == (None if task == "depth" else {str(n): f"LABEL_{n}" for n in range(3)})
    assert metadata.get("fixed_size") == ([80, 112] if is_detector else None)
    assert (metadata["input"], metadata["patch_size"]) == ({"colors": "RGB", "pixel_range": [0, 1]}, 16)
    assert (session.get_inputs()[0].shape == ["batch", 3, 80, 112]) == is_detector
    graph = onnx.load(tmp_path / "out.onnx")
    assert "GridSample" not in {node.op_type for part in (graph.graph, *graph.functions) for node in part.node}
    pixel_values = torch.rand(3, 3, *((80, 112) if is_detector else (48, 128)))
    with torch.no_grad():
        expected = model(pixel_values) if is_detector else model(pixel_values, window_size="global")
    for name, value in zip(names, session.run(names, {"pixel_values": pixel_values.numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(value), expected[name], rtol=0, atol=1e-4)


@pytest.mark.tour
def test_radio1d_encoder_takes_the_number_of_tokens_and_any_channels(tmp_path, capsys):
    model = build_radio1d(num_hidden_layers=2, **FIVE_CHANNELS)
    model.save_pretrained(tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out.onnx"), "--encoder"]) == 0
    assert "num_tokens an integer" in capsys.readouterr().out
    session = open_session(tmp_path / "out.onnx")
    for batch_size, height, width, count in ((1, 64, 96, 6), (3, 48, 80, 1), (2, 128, 32, 0)):
        images = torch.rand(batch_size, 5, height, width)
        tokens, summary = session.run(None, {"pixel_values": images.numpy(), "num_tokens": np.array(count)})
        with torch.no_grad():
            expected = model(images, num_tokens=count, decode=False)
        torch.testing.assert_close(torch.from_numpy(tokens), expected.global_tokens, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(summary), expected.global_summary, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Networks, a detector, and a classifier that lacks its head."""
    root = tmp_path_factory.mktemp("folders")
    save_tiny(root / "in", adaptors=ADAPTORS)
    build_radio1d(progressive_reduction=True).save_pretrained(root / "progressive")
    build("detector").save_pretrained(root / "detector")
    build("classifier").save_pretrained(root / "classifier")
    file = root / "classifier" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("classifier")}
    save_file(kept, file, metadata={"format": "pt"})
    return root


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in", "out.onnx", "--adaptors", "sam"], "Did you mean 'sam3'?"),
        (["in", "out.onnx", "--window-size", "16"], "`window_size` must leave two windows"),
        ([".", "out.onnx"], "`checkpoint`"),
        (["in", "out.onnx", "--precision", "int4"], "`precision`"),
        (["in", "out.onnx", "--head"], "for `head`"),
        (["in", "out.onnx", "--head", "--encoder"], "`encoder`"),
        (["in", "out.onnx", "--encoder"], "`encoder`"),
        (["progressive", "out.onnx", "--encoder"], "`encoder`"),
        (["in", "out.onnx", "--encoder", "--adaptors", "sam3"], "`adaptors`"),
        (["in", "out.onnx", "--encoder", "--window-size", "2"], "`window_size`"),
        (["in", "out.onnx", "--encoder", "--fixed-size", "48,64"], "`fixed_size`"),
        (["in", "out.onnx", "--fixed-size", "50,64"], "nearest valid size is 48 x 64"),
        (["in", "out.onnx", "--opset=-3"], "`opset`"),
        (["in", "out.onnx", "--tolerance=nan"], "`tolerance`"),
        (["in", "in/model.safetensors", "--overwrite"], "`output`"),
        (["detector", "out.onnx", "--head"], "`fixed_size`"),
        (["classifier", "out.onnx", "--head"], "missing: classifier"),
    ],
)
def test_what_cannot_be_exported_is_one_line(words, message, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    assert main(words) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (folders / "out.onnx").exists()


def test_an_encoder_takes_neither_adaptors_nor_windows():
    for name, value in (("adaptors", ["siglip2-g"]), ("window_size", 8)):
        with pytest.raises(ValueError, match=f"`{name}`"):
            export_onnx(build_radio1d(), encoder=True, **{name: value})
