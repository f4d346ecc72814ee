"""Int8 is timed beside float32, its gain beside that of windows, and its quality on a student."""

import math

import pytest
import torch
from PIL import Image
from transformers.utils import is_torchao_available

from benchmarks import int8
from benchmarks.measuring.turns import Turns
from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.resolution_radio import largest_side


needs_torchao = pytest.mark.skipif(not is_torchao_available(), reason="needs the extra `int8`")
PLAIN = {"preset": "radio-test", "compiled": False, "onnx": False}


@pytest.fixture
def models():
    """Two networks of which the second is as 8 bits would have it: weights rounded."""
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test")
    networks = {name: RadioModel(config).eval() for name in ("float32", "int8")}
    networks["int8"].load_state_dict(networks["float32"].state_dict())
    with torch.no_grad():
        for layer in networks["int8"].modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.copy_((layer.weight * 64).round() / 64)
    return networks


def timed(seconds):
    """Return a `take_turns` that calls each once and says that it took so many seconds."""

    def take(calls, **_):
        for call in calls.values():
            call()
        return Turns({name: [seconds[name]] * 2 for name in calls})

    return take


def test_sizes(models, monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "take_turns", timed({"float32": 0.4, "int8": 0.1}))
    (row,) = int8.time_sizes(int8.Int8Settings(**PLAIN, sizes=[64]), models, tmp_path)
    assert (row["size_px"], row["float32, ms"]) == (64, 400)
    assert row["int8, times as fast"] == "4.00 (4.00 to 4.00)"
    assert 0.9 < row["int8, cosine"] < 1


@pytest.mark.slow
def test_sizes_with_onnx(models, monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    names = ("float32", "int8", "ONNX float32", "ONNX int8")
    monkeypatch.setattr(int8, "take_turns", timed(dict.fromkeys(names, 0.1)))
    settings = int8.Int8Settings(**{**PLAIN, "onnx": True}, sizes=[64])
    (row,) = int8.time_sizes(settings, models, tmp_path)
    assert 0.99 < row["ONNX int8, cosine"] <= 1


def test_gains_that_multiply_and_where_the_time_goes(models, monkeypatch):
    window = f"window {int8.WINDOW_SIZE}"
    seconds = {"float32, global": 1.2, "int8, global": 0.6, f"float32, {window}": 0.4, f"int8, {window}": 0.25}
    monkeypatch.setattr(int8, "take_turns", timed(seconds))
    rows, profile = int8.time_windows(models, 256)
    assert [row["case"] for row in rows] == [row["case"] for row in profile] == list(seconds)
    assert [row["times as fast"][:4] for row in rows] == ["1.00", "2.00", "3.00", "4.80"]
    assert rows[-1]["of the product"] == 0.8
    assert all(row["linear, ms"] > 0 and row["attention, ms"] > 0 and row["rest, ms"] > 0 for row in profile)


def test_shares_are_of_what_runs():
    weight = torch.rand(512, 512)
    shares = int8.shares_of(lambda: weight @ weight)
    assert shares["linear, ms"] > 0
    assert shares["attention, ms"] == 0
    queries = torch.rand(1, 4, 512, 32)
    shares = int8.shares_of(lambda: torch.nn.functional.scaled_dot_product_attention(queries, queries, queries))
    assert shares["attention, ms"] > 0


@needs_torchao
def test_quality_of_a_student(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = RadioModel(RadioConfig.from_preset("radio-test"))
    model.save_pretrained(tmp_path / "student")
    RadioImageProcessor.from_model_config(model.config).save_pretrained(tmp_path / "student")
    for number in range(16):
        color = (15 * number, 255 - 15 * number, 90)
        Image.linear_gradient("L").convert("RGB").save(tmp_path / f"{number}.jpg", comment=str(color))
    measured = []

    def evaluate(checkpoint, cache):
        assert (checkpoint / "preprocessor_config.json").is_file()
        measured.append(
            (type(RadioModel.from_pretrained(checkpoint).radio_model.model.blocks[0].mlp.fc1.weight), cache)
        )
        return {"knn, accuracy": 0.5}

    monkeypatch.setattr(int8, "evaluate", evaluate)
    settings = int8.Int8Settings(**PLAIN, sizes=[64, 8000], photographs=tmp_path)
    plain, quantized = int8.measure_quality(settings, tmp_path / "student", tmp_path)
    assert plain == {"precision": "float32", "knn, accuracy": 0.5}
    assert quantized["precision"] == "int8"
    assert 0.98 < quantized["lowest at 64 px"] <= quantized["cosine at 64 px"] < 1
    largest = largest_side(model.config)
    assert {name for name in quantized if name.startswith("cosine")} == {"cosine at 64 px", f"cosine at {largest} px"}
    assert measured[0][0] is torch.nn.Parameter
    assert measured[1][0].__name__ == "Int8Tensor"
    assert measured[0][1] != measured[1][1]


def test_a_size_that_does_not_fit_is_one_line(capsys):
    assert int8.main(["--window-px", "100"]) == 1
    assert "The nearest valid size is 96 x 96" in capsys.readouterr().err
    assert math.isclose(int8.mean_cosine(torch.ones(1, 2), torch.tensor([[1.0, 0.0]])), 0.7071)
