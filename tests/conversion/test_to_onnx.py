"""The exported graph gives the model's outputs at any batch, height and width."""

import copy
import re

import numpy as np
import pytest
import torch
from releases import needs_exporter
from safetensors.torch import load_file, save_file
from task_models import build
from tiny_eradio import build_eradio
from tiny_radio1d import build_radio1d

from conversion.to_onnx import check_onnx, export_onnx, main, save_onnx
from modeling_radio import RadioConfig, RadioModel


pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = needs_exporter
FAIL = onnxruntime.capi.onnxruntime_pybind11_state.Fail
HEAD = {"summary_dim": 12, "feature_dim": 8, "hidden_size": 16}
ADAPTORS = [
    {"name": "siglip2-g", **HEAD, "feature_head": "attention"},
    {"name": "sam3", "token_index": 2, **HEAD, "upsample_factor": 2},
]
OUTPUTS = [
    *("summary", "features", "siglip2-g_summary", "siglip2-g_features"),
    *("sam3_summary", "sam3_features"),
]


def save_tiny(folder, **overrides):
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=2, vitdet_num_global=1, **overrides)
    RadioModel(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("window", "frames"), [(None, None), (2, None), (None, 2)])
def test_command_exports_and_checks(window, frames, tmp_path, capsys):
    source = save_tiny(tmp_path / "in", adaptors=ADAPTORS, video_temporal_patch_size=frames)
    arguments = [str(source), str(tmp_path / "out.onnx"), *(["--window-size", str(window)] if window else [])]
    assert main(arguments) == 0
    assert f"multiples of {16 * (window or 1)} px" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["pixel_values"]
    names = [entry.name for entry in session.get_outputs()]
    assert names == OUTPUTS
    model = RadioModel.from_pretrained(source).eval()
    images = torch.rand(3, 3, 96, 160)
    with torch.no_grad():
        expected = model(images, window_size=window)
    outputs = dict(zip(names, session.run(names, {"pixel_values": images.numpy()}), strict=True))
    torch.testing.assert_close(torch.from_numpy(outputs["features"]), expected.features, rtol=0, atol=1e-4)
    sam3 = expected.adaptors["sam3"].features
    torch.testing.assert_close(torch.from_numpy(outputs["sam3_features"]), sam3, rtol=0, atol=1e-4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 2])
def test_an_e_radio_is_exported_for_sizes_that_its_windows_divide(window, tmp_path, capsys):
    model = build_eradio()
    model.save_pretrained(tmp_path / "in")
    flags = ["--window-size", str(window)] if window else []
    assert main([str(tmp_path / "in"), str(tmp_path / "out.onnx"), *flags]) == 0  # compares at several sizes
    step = 32 * (window or 4)
    assert f"multiples of {step} px" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    images = torch.rand(2, 3, step, 3 * step)
    (features,) = session.run(["features"], {"pixel_values": images.numpy()})
    with torch.no_grad():
        expected = model(images, window_size=window).features
    torch.testing.assert_close(torch.from_numpy(features), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "largest_part", "tolerance"), [("fp16", 0.6, 0.01), ("int8", 0.9, 0.1)])
def test_other_precisions(precision, largest_part, tolerance, tmp_path, capsys):
    source = save_tiny(tmp_path / "in", adaptors=ADAPTORS)
    model = RadioModel.from_pretrained(source).eval()
    save_onnx(export_onnx(model)[1], tmp_path / "fp32.onnx")
    assert main([str(source), str(tmp_path / "out.onnx"), "--precision", precision]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["output", "largest", "difference", "mean", "cosine", "lowest"]
    assert [line.split()[0] for line in lines[1:-1]] == OUTPUTS
    assert all(0.998 < float(line.split()[2]) <= 1 for line in lines[1:-1])
    assert (tmp_path / "out.onnx").stat().st_size < largest_part * (tmp_path / "fp32.onnx").stat().st_size
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    images = torch.rand(3, 3, 96, 160)
    (features,) = session.run(["features"], {"pixel_values": images.numpy()})
    with torch.no_grad():
        expected = model(images).features
    difference = (torch.from_numpy(features) - expected).abs().amax()
    assert 1e-4 < difference < tolerance
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fp32.onnx", "in", "out.onnx"]


@pytest.mark.slow
def test_a_precision_that_loses_too_much_is_refused_and_nothing_is_left(tmp_path, capsys):
    source = save_tiny(tmp_path / "in")
    arguments = [str(source), str(tmp_path / "out.onnx"), "--precision", "int8"]
    assert main([*arguments, "--least-cosine", "1"]) == 1
    assert re.search("mean cosine of '.*' with PyTorch is .*, less than 1: this precision", capsys.readouterr().err)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


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
@pytest.mark.parametrize("task", TASKS)
def test_heads_of_tasks_by_the_names_of_their_outputs(task, tmp_path, capsys):
    torch.manual_seed(0)
    model = build(task)
    model.save_pretrained(tmp_path / "in")
    is_detector = "pred_boxes" in TASKS[task]
    words = [str(tmp_path / "in"), str(tmp_path / "out.onnx"), "--head"]
    assert main([*words, *(["--fixed-size", "80,112"] if is_detector else [])]) == 0
    assert ("80 x 112 px" if is_detector else "multiples of 16 px") in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    assert names == TASKS[task]
    pixel_values = torch.rand(3, 3, *((80, 112) if is_detector else (48, 128)))
    with torch.no_grad():
        expected = model(pixel_values) if is_detector else model(pixel_values, window_size="global")
    for name, value in zip(names, session.run(names, {"pixel_values": pixel_values.numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(value), expected[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_graph_of_one_size(tmp_path, capsys):
    source = save_tiny(tmp_path / "in", adaptors=ADAPTORS)
    assert main([str(source), str(tmp_path / "out.onnx"), "--fixed-size", "48,64", "--adaptors", "none"]) == 0
    assert "any batch, 48 x 64 px" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 48, 64]


@pytest.mark.slow
def test_chosen_adaptors_and_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("conversion.graphs.files.EXTERNAL_DATA_BYTES", 0)
    source = save_tiny(tmp_path / "in", adaptors=ADAPTORS, use_cropped_positions=False)
    assert main([str(source), str(tmp_path / "out.onnx"), "--adaptors", "sam3"]) == 0
    first, _, weights = sorted(file.name for file in tmp_path.iterdir())
    assert (first, re.fullmatch(r"out\.onnx\.[0-9a-f]{8}\.data", weights) is not None) == ("in", True)
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_outputs()] == ["summary", "features", "sam3_summary", "sam3_features"]
    (tmp_path / "out.onnx.0123abcd.data").write_text("of an export that was killed")
    (tmp_path / "out.onnx.data").write_text("mine")
    assert main([str(source), str(tmp_path / "out.onnx"), "--adaptors", "sam3", "--overwrite"]) == 0
    left = {file.name for file in tmp_path.iterdir()} - {"in", "out.onnx", "out.onnx.data"}
    assert len(left) == 1
    assert not {weights, "out.onnx.0123abcd.data"} & left
    assert (tmp_path / "out.onnx.data").read_text() == "mine"
    onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_a_kill_between_weights_and_graph_leaves_the_older_model_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("conversion.graphs.files.EXTERNAL_DATA_BYTES", 0)
    path, images = tmp_path / "out.onnx", torch.rand(1, 3, 32, 32).numpy()
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_tiny(tmp_path / str(seed))
    assert main([str(tmp_path / "0"), str(path)]) == 0

    def outputs():
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            ["features"], {"pixel_values": images}
        )[0]

    def stop(finished, target):
        if target == path:
            raise KeyboardInterrupt
        finished.replace(target)

    before = outputs()
    monkeypatch.setattr("core.files.move_into_place", stop)
    assert main([str(tmp_path / "1"), str(path), "--overwrite"]) == 130
    assert (outputs() == before).all()


@pytest.mark.slow
@pytest.mark.parametrize("opset", [7, 99])
def test_an_operator_set_that_the_exporter_does_not_know_is_refused(opset, tmp_path):
    model = RadioModel.from_pretrained(save_tiny(tmp_path / "in"))
    with pytest.raises(ValueError, match=rf"`opset` must be one that PyTorch can export to, got {opset}: it wrote 18"):
        export_onnx(model, opset=opset)


@pytest.mark.slow
def test_a_changed_graph_is_noticed(tmp_path):
    model = RadioModel.from_pretrained(save_tiny(tmp_path / "in")).eval()
    wrapped, program = export_onnx(model)
    save_onnx(program, tmp_path / "out.onnx")
    with torch.no_grad():
        model.radio_model.model.patch_generator.pos_embed += 1
    assert check_onnx(wrapped, tmp_path / "out.onnx")["features"].largest_difference > 0.1


def test_bad_input_is_one_line(tmp_path, capsys):
    source = save_tiny(tmp_path / "in", adaptors=ADAPTORS)
    for arguments, message in (
        ([str(source), str(tmp_path / "out.onnx"), "--adaptors", "sam"], "got 'sam'. Did you mean 'sam3'?"),
        ([str(source), str(tmp_path / "out.onnx"), "--window-size", "16"], "must leave two windows in"),
        ([str(tmp_path), str(tmp_path / "out.onnx")], "`checkpoint` must be a folder with a config.json"),
        (
            [str(source), str(tmp_path / "out.onnx"), "--precision", "int4"],
            "`precision` must be one of ['fp32', 'fp16', 'int8'], got",
        ),
        ([str(source), str(tmp_path / "out.onnx"), "--head"], "must hold a model of a task for `head`"),
        ([str(source), str(tmp_path / "out.onnx"), "--head", "--encoder"], "`encoder` must be left out with `head`"),
        *(
            (
                [str(source), str(tmp_path / "out.onnx"), "--encoder", flag, value],
                f"`{flag[2:].replace('-', '_')}` must be left out with `encoder`, which has global tokens alone",
            )
            for flag, value in (("--adaptors", "sam3"), ("--window-size", "2"), ("--fixed-size", "48,64"))
        ),
        ([str(source), str(tmp_path / "out.onnx"), "--fixed-size", "50,64"], "The nearest valid size is 48 x 64"),
        ([str(source), str(tmp_path / "out.onnx"), "--opset=-3"], "`opset` must be an integer of at least 1, got -3"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("tolerance", ["nan", "-1", "inf"])
def test_a_tolerance_that_says_nothing_is_refused_before_the_work(tolerance, tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "out.onnx"), f"--tolerance={tolerance}"]) == 1
    assert re.search("`tolerance` must be a (finite )?number of at least 0, got ", capsys.readouterr().err)


def test_nothing_of_the_checkpoint_is_replaced(tmp_path, capsys):
    source = save_tiny(tmp_path / "in")
    (source / "model.onnx").touch()
    assert main([str(source), str(source / "model.safetensors"), "--overwrite"]) == 1
    assert "`output` must not be or hold what is read, " in capsys.readouterr().err
    assert main([str(source), str(source / "model.onnx")]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.fixture(scope="module", params=[None, 2])
def exported(request, tmp_path_factory):
    """A model, its window, and a session of its exported graph."""
    folder = tmp_path_factory.mktemp("onnx")
    model = RadioModel.from_pretrained(save_tiny(folder / "in", adaptors=ADAPTORS)).eval()
    save_onnx(export_onnx(model, window_size=request.param)[1], folder / "out.onnx")
    session = onnxruntime.InferenceSession(str(folder / "out.onnx"), providers=["CPUExecutionProvider"])
    return model, request.param, session


@pytest.mark.slow
def test_sizes_off_the_grid_are_errors_that_name_them(exported):
    _, window, session = exported
    for height, width in [(33, 32), (32, 47), *([(48, 32), (16, 64)] if window else [])]:
        with pytest.raises(FAIL) as error:
            session.run(None, {"pixel_values": torch.rand(1, 3, height, width).numpy()})
        # Pixels, or patches where only the window does not fit.
        assert re.search(f"{height}|{width}|{height // 16},|,{width // 16}", str(error.value).partition("shape")[2])


@pytest.mark.slow
def test_larger_images_than_the_model_takes_work_and_empty_batches_without_windows(exported):
    """The graph has no limit of its own: positions are resized on."""
    model, window, session = exported
    images = torch.rand(1, 3, 2 * model.max_resolution, 32)
    (features,) = session.run(["features"], {"pixel_values": images.numpy()})
    larger = RadioModel(RadioConfig.from_dict({**model.config.to_dict(), "max_resolution": images.shape[2]})).eval()
    larger.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = larger(images, window_size=window).features
    torch.testing.assert_close(torch.from_numpy(features), expected, rtol=0, atol=1e-4)
    if window is None:
        empty = session.run(["features", "sam3_features"], {"pixel_values": images[:0].numpy()})
        assert [len(output) for output in empty] == [0, 0]
    else:
        with pytest.raises(FAIL):
            session.run(["features"], {"pixel_values": images[:0].numpy()})


@pytest.mark.slow
def test_what_is_no_number_reaches_every_output_and_is_refused_in_weights(exported, tmp_path, capsys):
    model, _, session = exported
    outputs = session.run(OUTPUTS, {"pixel_values": torch.full((1, 3, 32, 32), torch.nan).numpy()})
    assert all(torch.from_numpy(output).isnan().any() for output in outputs)
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.radio_model.model.blocks[0].mlp.fc1.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out.onnx")]) == 1
    assert "hold NaN or infinity: radio_model.model.blocks.0.mlp.fc1.weight" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_radio1d_encoder_takes_the_number_of_tokens(tmp_path, capsys):
    model = build_radio1d(num_hidden_layers=2)
    model.save_pretrained(tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out.onnx"), "--encoder"]) == 0
    assert "num_tokens an integer" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["pixel_values", "num_tokens"]
    for batch_size, height, width, count in ((1, 64, 96, 6), (3, 48, 80, 1), (2, 128, 32, 0)):
        images = torch.rand(batch_size, 3, height, width)
        tokens, summary = session.run(None, {"pixel_values": images.numpy(), "num_tokens": np.array(count)})
        with torch.no_grad():
            expected = model(images, num_tokens=count, decode=False)
        torch.testing.assert_close(torch.from_numpy(tokens), expected.global_tokens, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(summary), expected.global_summary, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_radio1d_with_its_decoder(tmp_path):
    build_radio1d().save_pretrained(tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out.onnx")]) == 0  # compared at several sizes


def test_a_detector_needs_a_size_and_weights_of_its_head(tmp_path, capsys):
    build("detector").save_pretrained(tmp_path / "in")
    words = [str(tmp_path / "in"), str(tmp_path / "out.onnx"), "--head"]
    assert main(words) == 1
    assert "`fixed_size` must be given for a detector, such as 512,512" in capsys.readouterr().err
    build("classifier").save_pretrained(tmp_path / "classifier")
    tensors = load_file(tmp_path / "classifier" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "classifier" / "model.safetensors", metadata={"format": "pt"})
    assert main([str(tmp_path / "classifier"), *words[1:]]) == 1
    assert re.search(r"do not fit the architecture\. \d missing: classifier", capsys.readouterr().err)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("fields", [None, {"progressive_reduction": True}])
def test_an_encoder_whose_tokens_cannot_be_counted_is_refused(fields):
    model = RadioModel(RadioConfig.from_preset("radio-test")) if fields is None else build_radio1d(**fields)
    with pytest.raises(ValueError, match="`encoder` must be false but for a RADIO1D without `progressive_reduction`"):
        export_onnx(model, encoder=True)


@pytest.mark.parametrize("asked", [{"adaptors": ["siglip2-g"]}, {"window_size": 8}])
def test_what_an_encoder_cannot_give_is_refused(asked):
    (name,) = asked
    with pytest.raises(ValueError, match=f"`{name}` must be left out with `encoder`, .* got "):
        export_onnx(build_radio1d(), encoder=True, **asked)
