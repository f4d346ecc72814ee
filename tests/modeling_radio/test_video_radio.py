"""Clips: temporal patches as NVIDIA's and transformers' code gives them, outputs by clip, one position crop a clip."""

import json
import shutil

import pytest
import torch
from reference_cases import REFERENCE, load_training_file, write_hub_folder
from releases import needs_native_clips
from safetensors.torch import load_file
from transformers.models.radio import RadioModel as NativeRadioModel

from conversion.from_nvidia import convert
from conversion.to_nvidia import training_file_content
from modeling_radio import RadioConfig, RadioForImageClassification, RadioModel


CASE = REFERENCE / "radio_video_tiny"
HEADS = [{"name": "dino_v3", "feature_dim": 8, "summary_dim": 12, "hidden_size": 16}]


@pytest.fixture(scope="module")
def stored():
    return load_file(CASE / "expected.safetensors")


@pytest.fixture(scope="module")
def converted():
    return convert(CASE / "checkpoint.pth.tar")


def build(frames=None, **fields):
    config = RadioConfig.from_preset("radio-test", video_temporal_patch_size=frames, num_hidden_layers=2, **fields)
    return RadioModel(config).eval()


@needs_native_clips
@pytest.mark.parametrize("size", ["64x64", "96x128"])
@torch.no_grad()
def test_native_radio_gives_equal_outputs_of_frames_and_clips(size, stored, converted, tmp_path):
    converted.save_pretrained(tmp_path / "ours")
    published = write_hub_folder("radio_video_tiny", tmp_path / "published")
    shutil.copy(CASE / "native_config.json", published / "config.json")
    clip = stored[f"{size}/clip_uint8"] / 255
    for folder in (tmp_path / "ours", published):
        native, report = NativeRadioModel.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        frames = native.eval()(clip)
        normalized = native.make_preprocessor_external()(clip)
        packed = native(normalized.reshape(-1, 6, *clip.shape[-2:]))
        pairs = ((frames, converted(clip)), (packed, converted(pixel_values_videos=clip[None])))
        for theirs, ours in pairs:
            assert torch.equal(theirs.summary, ours.summary.view_as(theirs.summary))
            assert torch.equal(theirs.features, ours.features.view_as(theirs.features))


@needs_native_clips
@pytest.mark.parametrize("frames", [2, 3, 4])
@torch.no_grad()
def test_native_radio_gives_equal_outputs_of_other_groups(frames, tmp_path):
    model, clip = build(frames), torch.rand(1, 2 * frames - 1, 3, 48, 80)
    model.save_pretrained(tmp_path)
    native = NativeRadioModel.from_pretrained(tmp_path).eval()
    normalized = native.make_preprocessor_external()(torch.cat([clip, clip[:, -1:]], dim=1)[0])
    packed = native(normalized.reshape(2, 3 * frames, 48, 80))
    ours = model(pixel_values_videos=clip)
    assert torch.equal(packed.summary, ours.summary[0])
    assert torch.equal(packed.features, ours.features[0])


def test_frames_of_a_clip_share_the_stored_position_crop(stored, converted):
    draws, expected = stored["96x128/training/draws"], stored["96x128/training/positions"]
    generator = converted.radio_model.model.patch_generator
    positions = generator.sample_positions(6, 8, draws.repeat_interleave(4, dim=0))
    torch.testing.assert_close(positions, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [None, 2])
def test_groups_of_a_clip_share_a_position_crop_in_training(frames):
    model = build(frames).train()
    groups = 4 if frames is None else 2
    still = torch.rand(2, 1, 3, 64, 64).expand(-1, 4, -1, -1, -1)  # frames that differ in nothing but positions
    for draws in (None, torch.rand(2, model.num_draws)):
        features = model(pixel_values_videos=still, draws=draws).features
        assert features.shape == (2, groups, 16, 32)
        torch.testing.assert_close(features, features[:, :1].expand_as(features))
        again = model(pixel_values_videos=still, draws=draws).features
        assert torch.equal(features, again) == (draws is not None)
    apart = model(still.flatten(0, 1)).features.unflatten(0, (2, 4))
    assert not torch.allclose(apart[:, 0], apart[:, 1], atol=1e-3)
    one = draws.clone()
    one[1] = draws[0]
    shared = model(pixel_values_videos=still, draws=one).features
    torch.testing.assert_close(shared[0], features[0])
    assert not torch.allclose(shared[1], features[1], atol=1e-3)


@pytest.mark.parametrize(("frames", "count", "groups"), [(2, 6, 3), (2, 5, 3), (3, 7, 3), (3, 1, 1), (4, 8, 2)])
@torch.no_grad()
def test_the_last_frame_fills_the_last_group(frames, count, groups):
    model, clip = build(frames), torch.rand(2, count, 3, 32, 48)
    output = model(pixel_values_videos=clip)
    assert output.summary.shape == (2, groups, 64)
    filled = torch.cat([clip, clip[:, -1:].expand(-1, groups * frames - count, -1, -1, -1)], dim=1)
    torch.testing.assert_close(output.features, model(pixel_values_videos=filled).features)
    alone = model(pixel_values_videos=filled[1:, -frames:])  # no group sees another
    torch.testing.assert_close(output.features[1, -1], alone.features[0, 0])


@torch.no_grad()
def test_without_temporal_patches_each_frame_is_an_image():
    model, clip = build(adaptors=HEADS), torch.rand(2, 3, 3, 32, 48)
    output, images = model(pixel_values_videos=clip), model(clip.flatten(0, 1))
    assert torch.equal(output.features.flatten(0, 1), images.features)
    assert torch.equal(output.adaptors["dino_v3"].summary.flatten(0, 1), images.adaptors["dino_v3"].summary)


@torch.no_grad()
def test_every_output_has_an_axis_for_groups():
    model = build(2, adaptors=HEADS, attn_implementation="eager")
    clip = torch.rand(2, 4, 3, 32, 48)
    options = {"output_hidden_states": True, "output_attentions": True, "feature_format": "NCHW"}
    output = model(pixel_values_videos=clip, **options)
    assert output.features.shape == (2, 2, 32, 2, 3)
    assert output.pooler_output.shape == output.summary.shape == (2, 2, 64)
    assert output.last_hidden_state.shape == (2, 2, 16, 32)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 2, 16, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, 2, 16, 16)] * 2
    assert output.adaptors["dino_v3"].summary.shape == (2, 2, 12)
    assert output.adaptors["dino_v3"].features.shape == (2, 2, 8, 2, 3)
    pairs = model(pixel_values_videos=clip, return_dict=False)
    assert torch.equal(pairs["backbone"].summary, output.summary)
    assert model(pixel_values_videos=clip, output_hidden_states=[1]).hidden_states[0] is None


@torch.no_grad()
def test_the_model_normalizes_frames(converted):
    clip = torch.rand(1, 2, 3, 32, 32)
    inside = converted(pixel_values_videos=clip).summary
    outside = RadioModel(converted.config).eval()
    outside.load_state_dict(converted.state_dict())
    conditioner = outside.make_preprocessor_external()
    normalized = conditioner(clip.flatten(0, 1)).unflatten(0, (1, 2))
    torch.testing.assert_close(outside(pixel_values_videos=normalized).summary, inside)


@pytest.mark.parametrize("pooling", ["summary", "summary_and_features"])
def test_a_classifier_reads_the_mean_of_the_groups(pooling):
    config = RadioConfig.from_preset(
        "radio-test", video_temporal_patch_size=2, num_labels=3, classifier_pooling=pooling, num_hidden_layers=2
    )
    model = RadioForImageClassification(config).eval()
    clip = torch.rand(2, 4, 3, 32, 32)
    output = model(pixel_values_videos=clip, labels=torch.tensor([0, 2]))
    assert output.logits.shape == (2, 3)
    output.loss.backward()
    assert model.radio_model.model.patch_generator.video_embedder.weight.grad.abs().sum() > 0
    read = model.radio_model(None, pixel_values_videos=clip)
    tokens = read.tokens
    parts = [tokens[:, 0], tokens[:, 1], *([tokens[:, 10:].mean(dim=1)] if pooling != "summary" else [])]
    mean = torch.cat(parts, dim=1).unflatten(0, (2, 2)).mean(dim=1)
    torch.testing.assert_close(output.logits, model.classifier(mean))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`pixel_values` or `pixel_values_videos` must be given"),
        ({"pixel_values": torch.rand(1, 3, 32, 32), "pixel_values_videos": torch.rand(1, 2, 3, 32, 32)}, "got both"),
        ({"pixel_values_videos": torch.rand(2, 3, 32, 32)}, r"must be a tensor of the shape .*got \(2, 3, 32, 32\)"),
        ({"pixel_values_videos": [1]}, "`pixel_values_videos` must be a tensor .*got a list"),
        ({"pixel_values_videos": torch.rand(1, 0, 3, 32, 32)}, "at least one frame"),
        ({"pixel_values_videos": torch.rand(1, 2, 4, 32, 32)}, "`pixel_values_videos` must have 3 channels, got 4"),
        ({"pixel_values_videos": torch.rand(1, 2, 3, 32, 30)}, "`pixel_values_videos` must have sides"),
        ({"pixel_values_videos": torch.ones(1, 2, 3, 32, 32).byte()}, "`pixel_values_videos` must be floating point"),
        ({"pixel_values": torch.rand(1, 2, 3, 32, 32)}, "Clips are `pixel_values_videos`"),
        (
            {"image_grid_hw": torch.ones(1, 2).long(), "pixel_values_videos": torch.rand(1, 2, 3, 32, 32)},
            "`image_grid_hw` must be None with `pixel_values_videos`",
        ),
        ({"pixel_values_videos": torch.rand(1, 2, 3, 32, 32), "draws": torch.rand(2, 12)}, r"`draws` must have.*\(1, "),
    ],
)
def test_what_is_no_clip_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(2)(**arguments)


def test_round_trip_to_a_training_file(converted):
    theirs = load_training_file("radio_video_tiny")["state_dict"]
    ours = training_file_content(converted)["state_dict"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_only_networks_with_temporal_patches_hold_their_projection(tmp_path):
    assert not any("video" in key for key in build().state_dict())
    model = build(3)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["video_temporal_patch_size"] == 3
    assert model.radio_model.model.patch_generator.video_embedder.weight.shape == (32, 3 * 768)
