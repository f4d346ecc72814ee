"""Features after chosen blocks, beside the outputs that NVIDIA's code gave, on model and `radio_model` alike."""

import pytest
import torch
from reference_cases import REFERENCE
from refusals import refused, wrong
from safetensors.torch import load_file
from torch import nn

from modeling_radio import RadioBackbone, RadioConfig, RadioForImageClassification, RadioModel
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.intermediate_radio import average_blocks
from modeling_radio.outputs_radio import RadioPair


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The checkpoint does not tell its number of attention heads"),
]
TOLERANCE = 1e-5
ADAPTORS = [{"name": "sam3", "hidden_size": 8, "feature_dim": 6, "summary_dim": 4}]


@pytest.fixture(scope="module", params=[True, False], ids=["rotation of each block", "one rotation"])
def intermediate_network(request):
    config = RadioConfig.from_preset(
        "radio-test", num_intermediate_normalizers=4, intermediate_rotation_per_layer=request.param
    )
    intermediate_network = RadioModel(config).eval().radio_model
    generator = torch.Generator().manual_seed(0)
    for buffer in intermediate_network.inter_feature_normalizer.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return intermediate_network


def test_scaling_of_a_mean(intermediate_network):
    normalizer, blocks = intermediate_network.inter_feature_normalizer, [1, 2, 3]
    with torch.no_grad():
        result = intermediate_network(torch.rand(1, 3, 32, 48), keep=blocks)
        found = {
            order: average_blocks(intermediate_network, result, blocks, order)
            for order in ("post-alpha", "pre-alpha", "none")
        }
    prefix = intermediate_network.config.num_prefix_tokens
    tokens = {block: result.kept[block] for block in blocks}
    mean = sum(tokens.values()) / 3
    for answer in found.values():
        torch.testing.assert_close(answer[:, :prefix], mean[:, :prefix])
    torch.testing.assert_close(found["none"], mean)
    rotation = normalizer.rotation[3] if normalizer.rotation.ndim == 3 else normalizer.rotation
    centered = {block: (tokens[block][:, prefix:] - normalizer.means[block]) @ rotation.T for block in blocks}
    scale = sum(normalizer.alphas[block] for block in blocks) / 3
    torch.testing.assert_close(found["post-alpha"][:, prefix:], scale * sum(centered.values()) / 3)
    scaled = sum(normalizer.alphas[block] * centered[block] for block in blocks) / 3
    torch.testing.assert_close(found["pre-alpha"][:, prefix:], scaled)
    assert not torch.allclose(found["pre-alpha"], found["post-alpha"], atol=1e-2)


def stored_images(case: str) -> tuple[dict[str, torch.Tensor], str, torch.Tensor]:
    stored = load_file(REFERENCE / case / "expected.safetensors")
    size = next(key.split("/")[0] for key in stored if "/intermediates/" in key)
    return stored, size, stored[f"{size}/image_uint8"] / 255


@pytest.fixture(scope="module", params=["radio_v2.5_tiny", "radio_v2.5_g_tiny", "c_radio_v4_tiny"])
def case(request):
    return request.param


@pytest.fixture(scope="module")
def reference_model(case) -> RadioModel:
    return convert(REFERENCE / case / "checkpoint.pth.tar")


@pytest.mark.parametrize("aggregation", ["sparse", "dense"])
def test_intermediates_are_those_that_nvidia_stored(case, reference_model, aggregation):
    stored, size, images = stored_images(case)
    prefix = f"{size}/intermediates/{aggregation}"
    blocks = sorted({int(key.split("/")[3]) for key in stored if key.startswith(prefix)})
    with torch.no_grad():
        _, pairs = reference_model.forward_intermediates(
            images, indices=blocks, return_prefix_tokens=True, aggregation=aggregation
        )
        maps = reference_model.radio_model.forward_intermediates(
            images, blocks[::-1], intermediates_only=True, aggregation=aggregation
        )
    assert len(pairs) == len(maps) == len(blocks)
    for block, (summary, features), plain in zip(blocks, pairs, maps, strict=True):
        assert (summary - stored[f"{prefix}/{block}/summary"]).abs().max() <= TOLERANCE
        assert (features - stored[f"{prefix}/{block}/features"]).abs().max() <= TOLERANCE
        assert torch.equal(plain, features)


def test_the_final_output_beside_intermediates_is_nvidias(case, reference_model):
    stored, size, images = stored_images(case)
    with torch.no_grad():
        final, _ = reference_model.forward_intermediates(images, [1], norm=True, output_fmt="NLC")
    assert list(final) == ["backbone", *reference_model.adaptors]
    compared = 0
    for name, pair in final.items():
        for kind, value in zip(("summary", "features"), pair, strict=True):
            if value is not None:
                assert (value - stored[f"{size}/global/{name}/{kind}"]).abs().max() <= TOLERANCE
                compared += 1
    assert compared >= 2


@pytest.mark.parametrize("model_class", [RadioBackbone, RadioForImageClassification])
def test_intermediates_of_models_without_adaptors(model_class):
    model = model_class(RadioConfig.from_preset("radio-test", adaptors=ADAPTORS)).eval()
    with torch.no_grad():
        final, (features,) = model.forward_intermediates(torch.rand(1, 3, 32, 48), 1)
    assert torch.equal(final.features, features)


def test_options_of_intermediates():
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", use_final_norm=True)
    model = RadioModel(config).eval()
    nn.init.normal_(model.radio_model.model.norm.weight)
    images, depth = torch.rand(1, 3, 32, 48), config.num_hidden_layers
    with torch.no_grad():
        states = model(images, output_hidden_states=True).hidden_states[1:]
        everything = model.forward_intermediates(images, intermediates_only=True, output_fmt="NLC")
        last_two = model.forward_intermediates(images, 2, intermediates_only=True, output_fmt="NLC")
        negative = model.forward_intermediates(images, [-1, 0], intermediates_only=True, output_fmt="NLC")
        normed = model.forward_intermediates(images, [0], norm=True, intermediates_only=True, output_fmt="NLC")
        stopped, _ = model.forward_intermediates(images, [1], stop_early=True, output_fmt="NLC")
        final, (mapped,) = model.forward_intermediates(images, [0])
    tokens = [state[:, config.num_prefix_tokens :] for state in states]
    assert len(everything) == depth
    assert all(torch.equal(left, right) for left, right in zip(everything, tokens, strict=True))
    assert all(torch.equal(left, right) for left, right in zip(last_two, tokens[-2:], strict=True))
    assert all(torch.equal(left, right) for left, right in zip(negative, [tokens[0], tokens[-1]], strict=True))
    assert torch.equal(normed[0], model.radio_model.model.norm(tokens[0]))
    assert torch.equal(stopped.features, tokens[1])
    assert isinstance(final, RadioPair)
    assert torch.equal(final.features.flatten(2).transpose(1, 2), tokens[-1])  # not normed, since not asked for
    assert torch.equal(mapped.flatten(2).transpose(1, 2), tokens[0])


@wrong(indices=[[9], 3, []], output_fmt=["NHWC"], aggregation=["dens"], norm_alpha_scheme=["alpha"])
def test_wrong_options_of_intermediates_are_named(name, value):
    model = RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=2)).eval()
    refused(name, lambda: model.forward_intermediates(torch.rand(1, 3, 32, 32), **{"indices": [0], name: value}))
