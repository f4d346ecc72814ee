"""SAM3 on RADIO: nothing changes but the features."""

import pytest
import torch
from comparisons import assert_same_weights
from safetensors.torch import load_file, save_file
from tiny_sam3 import GRID, SAM3_PX, TRUNK_WIDTH, build_sam3
from transformers import Sam3Model

from modeling_radio import RadioConfig, RadioModel, RadioModelOutput, attach_to_sam3, save_attached
from modeling_radio.adaptors_radio import RadioAdaptorOutput
from modeling_radio.sam3_radio import RadioSam3Trunk


RADIO_PX = GRID * 16
OUTPUTS = ("pred_masks", "pred_boxes", "pred_logits", "presence_logits", "semantic_seg")

SEGMENT_ELSEWHERE = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Sam3Model

try:
    Sam3Model.from_pretrained("attached")
except KeyError as error:
    assert error.args == ("radio_sam3_trunk",)
else:
    raise AssertionError("opened without the trunk's class")
model = AutoModel.from_pretrained("attached", trust_remote_code=True)
inputs = load_file("inputs.safetensors")
with torch.no_grad():
    output = model(**inputs)
save_file({"pred_masks": output.pred_masks.contiguous()}, "masks.safetensors")
"""


@pytest.fixture
def sam3():
    return build_sam3()


def build_radio(feature_dim=TRUNK_WIDTH, **fields):
    head = {"hidden_size": 24, "feature_dim": feature_dim}
    adaptors = [{"name": "sam3", **head}, {"name": "dino_v3", **head}]
    return RadioModel(
        RadioConfig.from_preset("radio-test", **{"adaptors": adaptors, "vitdet_num_windowed": 1, **fields})
    ).eval()


def random_inputs(side, batch_size=2):
    texts = torch.randint(4, 64, (batch_size, 6))
    texts[:, 4:] = 3
    return {"pixel_values": torch.rand(batch_size, 3, side, side) * 2 - 1, "input_ids": texts}


def run(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options)


class TrunkInTheAdaptor(torch.nn.Module):
    """Stands for RADIO: its sam3 adaptor answers with features that are given."""

    dtype = torch.float32

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, pixel_values, adaptor_names, **_options):
        self.pixel_values = pixel_values
        return RadioModelOutput(adaptors={name: RadioAdaptorOutput(features=self.features) for name in adaptor_names})


@pytest.mark.parametrize("boxes", [None, torch.tensor([[[0.5, 0.5, 0.4, 0.6]]] * 2)])
def test_sam3s_own_features_give_its_own_masks_bit_for_bit(sam3, boxes):
    inputs = random_inputs(SAM3_PX)
    if boxes is not None:
        inputs |= {"input_boxes": boxes, "input_boxes_labels": torch.ones(2, 1, dtype=torch.long)}
    expected = run(sam3, inputs)
    features = run(sam3.vision_encoder.backbone, {"pixel_values": inputs["pixel_values"]}).last_hidden_state
    attached = attach_to_sam3(sam3, build_radio())
    attached.vision_encoder.backbone.radio = TrunkInTheAdaptor(features)
    actual = run(attached, {**inputs, "pixel_values": torch.zeros(2, 3, RADIO_PX, RADIO_PX)})
    assert expected.pred_masks.std() > 0
    for name in OUTPUTS:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("window_size", [None, 2])
def test_features_are_the_adaptors_of_pixels_from_0_to_1(sam3, window_size):
    radio = build_radio()
    attach_to_sam3(sam3, radio, window_size=window_size)
    pixels = torch.rand(2, 3, RADIO_PX, RADIO_PX)
    actual = run(sam3.vision_encoder, {"pixel_values": pixels * 2 - 1}).last_hidden_state
    expected = run(radio, {"pixel_values": pixels}, window_size=window_size).adaptors["sam3"].features
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    other = run(radio, {"pixel_values": pixels}, window_size=2 if window_size is None else "global")
    assert not torch.allclose(actual, other.adaptors["sam3"].features, atol=1e-5)


def test_another_adaptor_with_finer_features_needs_smaller_images(sam3):
    head = {"hidden_size": 24, "feature_dim": TRUNK_WIDTH}
    attach_to_sam3(sam3, build_radio(adaptors=[{"name": "fine", **head, "upsample_factor": 2}]), "fine")
    assert sam3.config.vision_config.image_size == GRID * 8
    assert run(sam3, random_inputs(GRID * 8)).pred_masks.shape == (2, 5, 4 * GRID, 4 * GRID)


def test_saved_pair_opens_as_sam3_with_equal_weights(sam3, tmp_path):
    attach_to_sam3(sam3, build_radio(), window_size=2)
    inputs = random_inputs(RADIO_PX)
    expected = run(sam3, inputs)
    sam3.save_pretrained(tmp_path)
    again, info = Sam3Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    # By name: a copy that another test opened as remote code may have been registered last.
    assert type(again.vision_encoder.backbone).__name__ == RadioSam3Trunk.__name__
    assert again.vision_encoder.backbone.config.window_size == 2
    assert_same_weights(again, sam3)
    actual = run(again, inputs)
    for name in OUTPUTS:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-6)


def test_saved_pair_opens_elsewhere_with_its_own_code(sam3, run_elsewhere, tmp_path):
    attach_to_sam3(sam3, build_radio())
    inputs = random_inputs(RADIO_PX)
    save_attached(sam3, tmp_path / "attached")
    save_file(inputs, tmp_path / "inputs.safetensors")
    run_elsewhere(SEGMENT_ELSEWHERE, tmp_path)
    masks = load_file(tmp_path / "masks.safetensors")["pred_masks"]
    torch.testing.assert_close(masks, run(sam3, inputs).pred_masks, atol=1e-5, rtol=1e-5)


def test_sam3_on_its_own_trunk_is_not_saved_as_attached(sam3, tmp_path):
    with pytest.raises(ValueError, match="`sam3_model`"):
        save_attached(sam3, tmp_path)


@pytest.mark.parametrize(
    ("radio", "options", "message"),
    [
        ({}, {"adaptor_name": "sam"}, "`adaptor_name`"),
        ({"adaptors": []}, {}, "`adaptor_name`"),
        ({"feature_dim": 16}, {}, "`feature_dim`"),
        ({"max_resolution": 48}, {}, "`radio`"),
    ],
)
def test_radio_that_does_not_fit_is_refused(sam3, radio, options, message):
    trunk = sam3.vision_encoder.backbone
    with pytest.raises(ValueError, match=message):
        attach_to_sam3(sam3, build_radio(**radio), **options)
    assert sam3.vision_encoder.backbone is trunk


def test_images_of_another_size_are_refused(sam3):
    attach_to_sam3(sam3, build_radio())
    with pytest.raises(
        ValueError, match=r"must have 64 x 64 pixels for SAM3's 4 x 4 features, got \(48, 48\)\. .*'height'"
    ):
        run(sam3, random_inputs(48))
