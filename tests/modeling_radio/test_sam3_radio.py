"""SAM3 on RADIO: nothing changes but the features."""

import copy
import json

import pytest
import torch
from comparisons import assert_same_weights
from PIL import Image
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_sam3 import GRID, SAM3_PX, TRUNK_WIDTH, build_sam3, build_tracker, build_tracker_video, build_video
from transformers import Sam2VideoVideoProcessor, Sam3ImageProcessor, Sam3Model, Sam3TrackerVideoProcessor, pipeline
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

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


def test_radio_may_answer_in_pairs(sam3):
    radio, inputs = build_radio(), random_inputs(64)
    expected = run(attach_to_sam3(sam3, radio), inputs).pred_masks
    assert sam3.vision_encoder.backbone.radio is radio
    radio.config.return_dict = False
    assert torch.equal(run(sam3, inputs).pred_masks, expected)


def test_only_the_trunk_is_replaced(sam3):
    before = {name: value for name, value in sam3.state_dict().items() if ".backbone." not in name}
    config = copy.deepcopy(sam3.config.to_dict())
    radio = build_radio()
    assert attach_to_sam3(sam3, radio) is sam3
    after = {name: value for name, value in sam3.state_dict().items() if ".backbone." not in name}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() == before.keys()
    changed = sam3.config.to_dict()
    assert changed["vision_config"].pop("backbone_config") != config["vision_config"].pop("backbone_config")
    assert changed == config
    assert sam3.vision_encoder.backbone.radio is radio
    assert sam3.config.vision_config.image_size == RADIO_PX


def test_a_text_gives_masks_that_depend_on_text_and_image(sam3):
    attach_to_sam3(sam3, build_radio())
    inputs = random_inputs(RADIO_PX)
    masks = run(sam3, inputs).pred_masks
    assert masks.shape == (2, 5, 4 * GRID, 4 * GRID)
    assert masks.isfinite().all()
    for name in inputs:
        other = run(sam3, {**inputs, name: random_inputs(RADIO_PX)[name]}).pred_masks
        assert not torch.equal(other, masks), name


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


@pytest.mark.parametrize(
    ("name", "radio", "options"),
    [
        ("adaptor_name", {}, {"adaptor_name": "sam"}),
        ("adaptor_name", {"adaptors": []}, {}),
        ("feature_dim", {"feature_dim": 16}, {}),
        ("radio", {"max_resolution": 48}, {}),
    ],
)
def test_radio_that_does_not_fit_is_refused(sam3, name, radio, options):
    trunk = sam3.vision_encoder.backbone
    refused(name, lambda: attach_to_sam3(sam3, build_radio(**radio), **options))
    assert sam3.vision_encoder.backbone is trunk


def test_other_models_and_images_of_another_size_are_refused(sam3, tmp_path):
    refused("sam3_model", lambda: save_attached(sam3, tmp_path))  # on its own trunk
    refused("sam3_model", lambda: attach_to_sam3(torch.nn.Linear(2, 2), build_radio()))
    attach_to_sam3(sam3, build_radio())
    with pytest.raises(ValueError, match=r"64 x 64 .*\(48, 48\)"):
        run(sam3, random_inputs(48))


def points_of(side, at=(0.3, 0.6)):
    """A point of each of two images, in pixels of images of one side; the model adds half a pixel."""
    return {"input_points": (torch.tensor(at) * side - 0.5).expand(2, 1, 1, 2)}


def test_points_mean_the_same_place_whatever_the_trunk():
    tracker, pixels = build_tracker(), torch.rand(2, 3, SAM3_PX, SAM3_PX) * 2 - 1
    expected = run(tracker, {"pixel_values": pixels, **points_of(SAM3_PX)})
    elsewhere = run(tracker, {"pixel_values": pixels, **points_of(SAM3_PX, (0.9, 0.1))})
    features = run(tracker.vision_encoder.backbone, {"pixel_values": pixels}).last_hidden_state
    attach_to_sam3(tracker, build_radio()).vision_encoder.backbone.radio = TrunkInTheAdaptor(features)
    actual = run(tracker, {"pixel_values": torch.zeros(2, 3, RADIO_PX, RADIO_PX), **points_of(RADIO_PX)})
    for name in ("pred_masks", "iou_scores"):
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(elsewhere[name], expected[name], atol=1e-3)


def follow_a_point(model, frames):
    """Masks of one object in each frame, from a point in the first."""
    size = {"height": RADIO_PX, "width": RADIO_PX}
    processor = Sam3TrackerVideoProcessor(Sam3ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size))
    session = processor.init_video_session(video=frames)
    processor.add_inputs_to_inference_session(session, 0, 1, input_points=[[[[40.0, 30.0]]]], input_labels=[[[1]]])
    with torch.no_grad():
        return torch.cat([output.pred_masks for output in model.propagate_in_video_iterator(session, 0)])


def follow_words(model, frames):
    """Masks of one word's objects in each frame."""
    small = torch.nn.functional.interpolate(torch.from_numpy(frames).movedim(-1, 1) / 127.5 - 1, (RADIO_PX, RADIO_PX))
    session = Sam3VideoInferenceSession(video=small, video_height=90, video_width=120, dtype=torch.float32)
    number = session.add_prompt("a cat")
    session.prompt_input_ids[number] = torch.tensor([[1, 7, 9, 3, 3]])
    session.prompt_attention_masks[number] = torch.tensor([[1, 1, 1, 1, 0]])
    with torch.no_grad():
        outputs = list(model.propagate_in_video_iterator(session))
    assert all(output.obj_id_to_mask for output in outputs), "something is found"
    return torch.cat([mask.float() for output in outputs for mask in output.obj_id_to_mask.values()])


def keen(model):
    """A tracker of words that takes every detection for an object, as random weights find none."""
    model.score_threshold_detection = model.new_det_thresh = -1.0
    model.hotstart_delay = 0
    return model


@pytest.mark.parametrize(("build", "follow"), [(build_tracker_video, follow_a_point), (build_video, follow_words)])
def test_videos_are_followed_by_radios_features(build, follow, tmp_path):
    frames = torch.randint(0, 256, (3, 90, 120, 3), dtype=torch.uint8).numpy()
    model = keen(attach_to_sam3(build(), build_radio()))
    masks = follow(model, frames)
    assert len(masks) >= len(frames)
    assert masks.isfinite().all()
    other = keen(attach_to_sam3(build(), build_radio()))
    assert not torch.equal(masks, follow(other, frames)), "another RADIO, other masks"
    save_attached(model, tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(follow(keen(again.eval()), frames), masks, atol=1e-5, rtol=1e-5)


# No mask is left out, not even the less sure of two that are alike.
EVERYTHING = {"points_per_crop": 2, "pred_iou_thresh": -10, "stability_score_thresh": -1, "crops_nms_thresh": 1}
OPEN_ELSEWHERE = """
import json, sys
from PIL import Image
from transformers import AutoModel, pipeline

names = {folder: type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ for folder in sys.argv[2:]}
generate = pipeline("mask-generation", model="Sam3TrackerModel", trust_remote_code=True)
found = generate(Image.open("picture.png"), **json.loads(sys.argv[1]))
print(json.dumps([names, sorted(found["scores"].tolist())]))
"""


def test_all_are_opened_elsewhere_and_masks_are_generated(run_elsewhere, tmp_path):
    models = [
        attach_to_sam3(build(), build_radio())
        for build in (build_sam3, build_tracker, build_tracker_video, build_video)
    ]
    names = [type(model).__name__ for model in models]
    for model, name in zip(models, names, strict=True):
        save_attached(model, tmp_path / name)
    processor = Sam3ImageProcessor(size={"height": RADIO_PX, "width": RADIO_PX})
    processor.save_pretrained(tmp_path / "Sam3TrackerModel")
    picture = Image.fromarray(torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8).numpy())
    picture.save(tmp_path / "picture.png")
    opened, scores = json.loads(
        run_elsewhere(OPEN_ELSEWHERE, tmp_path, json.dumps(EVERYTHING), *names).splitlines()[-1]
    )
    assert opened == {name: f"Radio{name}" for name in names}
    generate = pipeline("mask-generation", model=models[1], image_processor=processor)
    found = generate(picture, **EVERYTHING)
    assert len(found["masks"]) == len(found["scores"]) > 0
    assert sorted(found["scores"].tolist()) == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("build", [build_tracker, build_tracker_video, build_video])
def test_saved_trackers_open_with_equal_weights(build, tmp_path):
    model = attach_to_sam3(build(), build_radio(), window_size=2)
    save_attached(model, tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_weights(again, model)
    for name, value in model.named_buffers():
        torch.testing.assert_close(dict(again.named_buffers())[name], value, msg=name)
    tracker = again.tracker_model if build is build_video else again
    assert tracker.prompt_encoder.input_image_size == RADIO_PX
    assert tracker.prompt_encoder.image_embedding_size == (GRID, GRID)
