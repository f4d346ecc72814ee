import numpy as np
import pytest
import torch
from PIL import Image

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.export import main as to_onnx


pytest.importorskip("onnxruntime", reason="needs the extra `export`")
pytestmark = pytest.mark.tour


def test_the_graph_answers_as_the_model(output_of, pictures, tmp_path):
    torch.manual_seed(0)
    radio = RadioModel(RadioConfig.from_preset("radio-test")).eval()
    radio.save_pretrained(tmp_path / "model")
    assert to_onnx([str(tmp_path / "model"), str(tmp_path / "model.onnx")]) == 0
    image = pictures / "red" / "3.png"
    printed = output_of("run_onnx", "model.onnx", image, "--size", 64, "--output", "features.npz")
    assert "ms by CPUExecutionProvider" in printed
    with np.load(tmp_path / "features.npz") as kept:
        answers = {name: kept[name] for name in kept.files}
    pixels = np.asarray(Image.open(image).resize((64, 64), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    with torch.inference_mode():
        out = radio(torch.from_numpy(pixels).movedim(-1, 0)[None])
    np.testing.assert_allclose(answers["summary"], out.summary, rtol=0, atol=1e-4)
    np.testing.assert_allclose(answers["features"], out.features, rtol=0, atol=1e-4)
    assert all(f"{name} {value.shape}" in printed for name, value in answers.items())
