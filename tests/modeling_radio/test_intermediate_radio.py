"""Groups of blocks, and the three ways to scale their mean."""

import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.inputs_radio import group_blocks


@pytest.mark.parametrize(
    ("blocks", "aggregation", "groups"),
    [
        ([1, 3], "sparse", [[1], [3]]),
        ([1, 3], "dense", [[0, 1], [2, 3]]),
        ([0, 1, 4], "dense", [[0], [1], [2, 3, 4]]),
    ],
)
def test_groups(blocks, aggregation, groups):
    assert group_blocks(blocks, aggregation) == groups


@pytest.fixture(scope="module", params=[True, False], ids=["rotation of each block", "one rotation"])
def network(request):
    config = RadioConfig.from_preset(
        "radio-test", num_intermediate_normalizers=4, intermediate_rotation_per_layer=request.param
    )
    network = RadioModel(config).eval().radio_model
    generator = torch.Generator().manual_seed(0)
    for buffer in network.inter_feature_normalizer.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return network


def test_scaling_of_a_mean(network):
    normalizer, blocks = network.inter_feature_normalizer, [1, 2, 3]
    with torch.no_grad():
        passed = network(torch.rand(1, 3, 32, 48), keep=blocks)
        found = {order: network.average_blocks(passed, blocks, order) for order in ("post-alpha", "pre-alpha", "none")}
    prefix = network.config.num_prefix_tokens
    tokens = {block: passed.kept[block] for block in blocks}
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
