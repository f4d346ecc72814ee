"""SAM3 on RADIO as three graphs: run one after the other they find what the model finds."""

import pytest
import torch
from tiny_sam3 import TRUNK_WIDTH, build_sam3

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.graphs.sam3_to_onnx import main
from modeling_radio.sam3_radio import attach_to_sam3, save_attached


pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def sam3():
    torch.manual_seed(0)
    adaptor = {"name": "sam3", "summary_dim": 8, "feature_dim": TRUNK_WIDTH, "hidden_size": 16}
    radio = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[adaptor]))
    return attach_to_sam3(build_sam3(), radio, window_size=2).eval()


@pytest.mark.slow
def test_three_graphs_find_what_the_model_finds(sam3, tmp_path, capsys):
    save_attached(sam3, tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "images of 64 x 64 px" in printed
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *("detector.onnx", "image_encoder.onnx", "text_encoder.onnx")
    ]

    def run(name, inputs):
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        outputs = [entry.name for entry in session.get_outputs()]
        return dict(zip(outputs, session.run(None, {each: inputs[each] for each in names}), strict=True))

    pixel_values = torch.rand(1, 3, 64, 64) * 2 - 1
    ids = torch.tensor([[1, 5, 7, 3] + 28 * [0], [1, 9, 3] + 29 * [0]])
    mask = (ids > 0).long()
    image = run("image_encoder", {"pixel_values": pixel_values.numpy()})
    texts = run("text_encoder", {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    pairs = {name: value.repeat(2, axis=0) for name, value in image.items()}  # one image, two texts
    found = run("detector", {**pairs, **texts, "attention_mask": mask.numpy()})
    with torch.no_grad():
        expected = sam3(pixel_values=pixel_values.repeat(2, 1, 1, 1), input_ids=ids, attention_mask=mask)
    assert (expected.pred_masks[0] - expected.pred_masks[1]).abs().amax() > 1e-4  # the text matters
    for name, value in found.items():
        torch.testing.assert_close(torch.from_numpy(value), expected[name], rtol=0, atol=1e-5, msg=name)


def test_another_model_is_refused(tmp_path, capsys):
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "`checkpoint` must be a folder that `save_attached` wrote" in capsys.readouterr().err
    build_sam3().save_pretrained(tmp_path / "sam3")
    assert main([str(tmp_path / "sam3"), str(tmp_path / "out")]) == 1
    assert "must run on RADIO" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
