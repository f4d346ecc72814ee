"""Arguments of E-RADIO: the published ones make a preset, and wrong ones are refused by name."""

import json

import pytest
import torch
from reference_cases import REFERENCE
from refusals import refused, wrong
from safetensors.torch import load_file

from modeling_radio import (
    RadioBackbone,
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioImageProcessor,
    RadioModel,
)
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.eradio_radio import check_eradio, eradio_fields, optimal_window


CASE = REFERENCE / "e_radio_tiny"
ARGUMENTS = json.loads((CASE / "eradio_arguments.json").read_text())


@wrong(
    dim=[7],
    depths=[[1, 1, 1]],
    num_heads=[[1, 1, 3, 4]],
    window_size=[[*[None] * 2, [4, 8], 4], [*[None] * 3, 4]],
    sr_ratio=[[1, 1, [4, 1], 1]],
    use_swiglu=[True],
    neck_start_stage=[1],
    cpb_hidden=[4],
    use_shift=[True],
)
def test_arguments_that_cannot_be_right(name, value):
    check_eradio({**ARGUMENTS, "use_shift": False, "drop_rate": 0.0, "norm": None})  # what is off may be unknown
    with pytest.raises(ValueError, match=f"`eradio.{name}"):
        check_eradio({**ARGUMENTS, name: value})


@wrong(hidden_size=[32], num_registers=[1], video_temporal_patch_size=[2], eradio=[{"dim": 4}, [1]])
def test_fields_that_contradict_the_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}"):
        RadioModel(RadioConfig(**{**eradio_fields(ARGUMENTS), name: value}))


@wrong(
    image_grid_hw=[torch.ones(1, 2).long()],
    output_hidden_states=[True],
    output_attentions=[True],
    draws=[torch.rand(1, 3)],
    window_size=["global", 0],
    pixel_values=[torch.rand(1, 3, 64, 80)],
)
def test_what_it_has_not_is_refused_by_name(name, value):
    refused(name, lambda: build()(**{"pixel_values": torch.rand(1, 3, 64, 64), name: value}))


def test_blocks_between_and_windows_of_others_are_refused():
    model, images = build(), torch.rand(1, 3, 64, 64)
    for ask in (
        lambda: model.get_intermediate_features(images, [1]),
        lambda: model.forward_intermediates(images, [1]),
        lambda: build(RadioForDepthEstimation)(images),
        lambda: model.choose_window_size(64, 64, max_latency_ms=1),
    ):
        with pytest.raises(ValueError, match="E-RADIO"):
            ask()
    refused("out_features", lambda: build(RadioBackbone, out_indices=[0]))
    refused("window_size", lambda: model.change_window_size(0))
    vit = RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1))
    refused("window_size", lambda: vit.change_window_size(4))
    with pytest.raises(ValueError, match="E-RADIO"):
        vit.set_optimal_window_size((64, 64))


HEADS = [{"name": "clip", "token_index": 0, "feature_dim": 8, "summary_dim": 12, "hidden_size": 16}]


def build(model_class=RadioModel, arguments=ARGUMENTS, **fields):
    torch.manual_seed(0)
    return model_class(RadioConfig(**eradio_fields(arguments), **fields)).eval()


@pytest.fixture(scope="module")
def stored():
    return load_file(CASE / "expected.safetensors")


def assert_stored(output, stored, key):
    torch.testing.assert_close(output.summary, stored[f"{key}/backbone/summary"], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.features, stored[f"{key}/backbone/features"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_windows_are_set_as_nvidia_sets_them(stored):
    model = convert(CASE / "checkpoint.pth.tar")
    wide, narrow = stored["128x192/image_uint8"] / 255, stored["64x96/image_uint8"] / 255
    model.change_window_size(2)
    assert_stored(model(wide), stored, "128x192/attention_window2")
    assert model.config.vitdet_window_size == 2
    model.change_window_size(None)
    assert_stored(model(wide), stored, "128x192/global")
    assert_stored(model(wide, window_size=2), stored, "128x192/attention_window2")  # of a call
    assert_stored(model(wide), stored, "128x192/global")
    assert model.set_optimal_window_size((64, 96)) == 2
    assert_stored(model(narrow), stored, "64x96/optimal")
    model.change_window_size(None)
    assert not torch.allclose(model(narrow).features, stored["64x96/optimal/backbone/features"], atol=1e-3)
    assert_stored(model(narrow, window_size="auto"), stored, "64x96/optimal")


@pytest.mark.parametrize(
    ("size", "window"), [((224, 224), 7), ((512, 512), 16), ((1024, 768), 12), ((32, 64), 1), ((544, 544), 1)]
)
def test_the_optimal_window_is_the_largest_divisor(size, window):
    assert optimal_window(*size) == window


@torch.no_grad()
def test_summary_is_the_mean_of_features_and_heads_read_it():
    model, images = build(adaptors=HEADS), torch.rand(2, 3, 64, 96)
    output = model(images, feature_format="NCHW")
    assert output.features.shape == (2, 24, 4, 6)
    torch.testing.assert_close(output.summary, output.features.flatten(2).mean(dim=2))
    assert output.adaptors["clip"].summary.shape == (2, 12)
    torch.testing.assert_close(output.adaptors["clip"].summary, model.adaptors["clip"].head_mlp(output.summary))
    assert output.adaptors["clip"].features.shape == (2, 8, 4, 6)
    clips = model(pixel_values_videos=images.unsqueeze(0))
    assert torch.equal(clips.summary[0], model(images).summary)
    assert model(images, return_dict=False, adaptor_names=[]).summary.shape == (2, 24)


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 12, "num_heads": [1, 1, 3, 6], "window_size": [None, None, [3, 3], 5], "cpb_mlp_hidden": 7},
        {"depths": [2, 1, 1, 2], "in_dim": 5, "mlp_ratio": 2.5, "full_features_head_dim": 10},
        {"sr_ratio": [1, 1, 1, [2, 1]], "window_size": [None, None, 4, [2, 2]]},
    ],
)
@torch.no_grad()
def test_other_shapes(changes):
    model = build(arguments={**ARGUMENTS, **changes})
    output = model(torch.rand(1, 3, 96, 160))
    assert output.features.shape == (1, 60, {**ARGUMENTS, **changes}["full_features_head_dim"])


def test_it_learns_and_counts_batches():
    model = build(RadioForImageClassification, num_labels=3).train()
    model(torch.rand(2, 3, 64, 64), labels=torch.tensor([0, 2])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.radio_model.model.patch_embed.conv_down[0].bn.num_batches_tracked == 1
    (features,) = build(RadioBackbone)(torch.rand(1, 3, 64, 96)).feature_maps
    assert features.shape == (1, 24, 4, 6)


def test_processor_rounds_to_its_step():
    model = build()
    assert model.min_resolution_step == 32
    processor = RadioImageProcessor.from_model_config(model.config, size=100)
    assert processor.get_output_size(100, 150) == (96, 160)
    assert model.get_nearest_supported_resolution(100, 150) == (96, 160)
