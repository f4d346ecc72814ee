"""The detector inside the detection models: precision, attention, export."""

import pytest
import torch
from releases import needs_exporter
from task_models import images, tiny_config
from torch.export import Dim

from modeling_radio import RadioForInstanceSegmentation, RadioForObjectDetection, RadioModel


MODELS = [RadioForObjectDetection, RadioForInstanceSegmentation]


def open_on_a_backbone(model_class, folder):
    RadioModel(tiny_config()).save_pretrained(folder)
    return model_class.from_pretrained(folder, dtype=torch.bfloat16, num_labels=3)


IN_HALF_PRECISION = {
    "on a backbone": open_on_a_backbone,
    "from a configuration": lambda model_class, _: model_class._from_config(tiny_config(), dtype=torch.bfloat16),
    "cast": lambda model_class, _: model_class(tiny_config()).to(torch.bfloat16),
    "cast by name": lambda model_class, _: model_class(tiny_config()).bfloat16(),
}


@pytest.mark.parametrize("way", IN_HALF_PRECISION)
@pytest.mark.parametrize("model_class", MODELS)
def test_computes_in_float32_however_the_model_is_built(model_class, way, tmp_path):
    model = IN_HALF_PRECISION[way](model_class, tmp_path / "backbone").eval()
    assert {weight.dtype for weight in model.radio_model.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.detector.parameters()} == {torch.float32}
    batch = images().bfloat16()
    expected = model(batch)
    assert expected.pred_boxes.dtype == torch.float32
    model.save_pretrained(tmp_path / "detector")
    again = model_class.from_pretrained(tmp_path / "detector").eval()
    assert again.dtype == torch.bfloat16
    assert torch.equal(again(batch).pred_boxes, expected.pred_boxes)


def test_casts_lose_nothing_and_moves_still_move():
    model = RadioForObjectDetection(tiny_config())
    before = {name: weight.clone() for name, weight in model.detector.named_parameters()}
    model.half().to("cpu", torch.bfloat16)
    for name, weight in model.detector.named_parameters():
        assert torch.equal(weight, before[name])
    assert {weight.dtype for weight in model.double().detector.parameters()} == {torch.float64}
    moved = model.to("meta", torch.float16).detector
    assert {(weight.device.type, weight.dtype) for weight in moved.parameters()} == {("meta", torch.float64)}


@pytest.mark.parametrize("model_class", MODELS)
def test_attends_as_the_backbone_does(model_class, tmp_path):
    model_class(tiny_config()).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.detector.config._attn_implementation == "eager"
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        inner = model.detector.model.decoder if model_class is RadioForObjectDetection else model.detector.model.model
        assert inner.config._attn_implementation == implementation
    assert model_class(tiny_config()).detector.config._attn_implementation == "sdpa"


def test_flash_kernels_which_lack_float32_are_for_the_backbone_only():
    detector = RadioForObjectDetection(tiny_config()).detector
    assert detector.get_correct_attn_implementation("flash_attention_2") == "sdpa"


@needs_exporter
@torch.no_grad()
def test_exports_for_any_batch():
    model = RadioForObjectDetection(
        tiny_config(num_hidden_layers=1, detection_indices=[0], detection_num_layers=1)
    ).eval()
    program = torch.export.export(model, (images(2),), dynamic_shapes={"pixel_values": {0: Dim("batch", max=8)}})
    batch = images(3)
    torch.testing.assert_close(program.module()(batch).pred_boxes, model(batch).pred_boxes)
