"""NaViT: its options together, what does not depend on the batch, what is refused. Values: `tests/conversion`."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_navit import build_navit

from modeling_radio import RadioBackbone, RadioConfig, RadioForSemanticSegmentation, RadioModel
from modeling_radio.checks_radio import Resolution
from modeling_radio.navit_radio import NavitBlock, Rotation, grid_positions


SIZES = ((20, 28), (12, 12), (4, 36), (28, 20), (12, 12))  # 5 x 7 patches of 4 px, 3 x 3, 1 x 9, 7 x 5
COMBINATIONS = list(
    itertools.product(
        ("layernorm", "rmsnorm"), ("pre", "post", "peri"), ("cls_token", "attn", "attn_qknorm"), (None, 2), (0, 3)
    )
)


def build_pack(images):
    patches = [F.pixel_unshuffle(image, 4).flatten(2)[0].T for image in images]
    return torch.cat(patches), torch.tensor([[side // 4 for side in image.shape[2:]] for image in images])


@torch.no_grad()
@pytest.mark.parametrize(("norm", "method", "pool", "window", "registers"), COMBINATIONS[::5])
def test_images_of_a_pack_are_as_each_alone_with_every_option(norm, method, pool, window, registers):
    options = {"norm_layer": norm, "norm_method": method, "pool_type": pool, "rope_fraction": 0.5}
    model = build_navit(options, num_registers=registers, use_layer_scale=registers > 0, qkv_bias=window is None)
    images = [torch.rand(1, 3, *size) for size in SIZES]
    patches, grids = build_pack(images)
    arguments = {"window_size": window, "output_hidden_states": True}
    together = model(patches, image_grid_hw=grids, **arguments)
    alone = [model(image, **arguments) for image in images]

    for index, out in enumerate(alone):
        torch.testing.assert_close(together.summary[index], out.summary[0], rtol=0, atol=3e-6)
    for read in (
        lambda out: out.features,
        lambda out: out.last_hidden_state,
        lambda out: out.hidden_states[1],
        lambda out: out.adaptors["teacher_b"].features,
    ):
        joined = torch.cat([read(out).flatten(0, 1) for out in alone])
        torch.testing.assert_close(read(together), joined, rtol=0, atol=3e-6)


@torch.no_grad()
@pytest.mark.parametrize("global_blocks", [None, [0], []])
def test_windows_by_configuration_by_call_and_by_block(global_blocks):
    """Windows of the whole image are global attention, but for the tokens in front, which see one another alone."""
    images = torch.rand(2, 3, 20, 28)
    model = build_navit(
        {"global_blocks": global_blocks}, num_cls_tokens=0, num_registers=0, summary_idxs=[], adaptors=[]
    )
    every, windowed, whole = (model(images, window_size=size).features for size in ("global", 2, 7))
    torch.testing.assert_close(whole, every, rtol=0, atol=3e-6)
    assert not torch.allclose(windowed, every, atol=1e-3)
    model.config.vitdet_window_size = 2
    assert torch.equal(model(images).features, windowed)
    front = build_navit({"global_blocks": global_blocks})
    weights = front(images, window_size=4, output_attentions=True).attentions
    assert [front.radio_model.model.is_global[block] for block in range(3)] == [len(each) == 2 for each in weights]


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 3])
def test_tokens_in_front_do_not_see_patches_in_windows(depth):
    model = build_navit({"global_blocks": []}, num_hidden_layers=depth)
    first, second = (model(torch.rand(1, 3, 16, 24), window_size=2) for _ in range(2))
    assert torch.equal(first.summary, second.summary)
    assert not torch.allclose(first.features, second.features, atol=1e-3)


def test_rotation_is_that_of_complex_numbers():
    """Component i and i + h/2 are a number that is turned by row (first half) or column times its frequency."""
    heads, positions = (
        torch.randn(1, 2 + 6, 1, 16, dtype=torch.float64),
        grid_positions(Resolution(2, 3), 2, torch.device("cpu")),
    )
    turned = Rotation.at(positions[None].double(), 16, 1000.0, 0.7).turn(heads)
    numbers = torch.complex(heads[0, :, 0, :8], heads[0, :, 0, 8:])
    for token, (row, col) in enumerate([(-1, -1), (-1, -1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        frequencies = [1000 ** (-index / 4) if index < 2 else 0.0 for index in range(4)]  # int(0.7 * 4)
        angles = torch.tensor([row * each for each in frequencies] + [col * each for each in frequencies])
        expected = numbers[token] * torch.exp(1j * angles)
        found = torch.complex(turned[0, token, 0, :8], turned[0, token, 0, 8:])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_intermediate_blocks(tmp_path):
    images = torch.rand(1, 3, 20, 28)
    for options, width in (({}, 32), ({"inner_summary_idxs": [1]}, 16), ({"pool_type": "attn"}, 0)):
        model = build_navit(options)
        found = model.get_intermediate_features(images, [0, 2])
        assert [each.summary.shape for each in found] == [(1, width)] * 2
        assert [each.features.shape for each in found] == [(1, 16, 5, 7)] * 2
        last = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True, output_fmt="NLC")[0]
        torch.testing.assert_close(last, model(images).features, rtol=0, atol=1e-6)
        final, _ = model.forward_intermediates(images, indices=1, output_fmt="NLC")
        torch.testing.assert_close(final["backbone"].features, model(images).features, rtol=0, atol=1e-6)
        early, _ = model.forward_intermediates(images, indices=[1], stop_early=True, output_fmt="NLC")
        shallow = build_navit(options, num_hidden_layers=2)
        shallow.load_state_dict({name: model.state_dict()[name] for name in shallow.state_dict()})
        torch.testing.assert_close(early["backbone"].summary, shallow(images).summary, rtol=0, atol=1e-6)
        maps = RadioBackbone(RadioConfig(**{**model.config.to_dict(), "out_indices": [1, 3]}))(images).feature_maps
        assert [each.shape for each in maps] == [(1, 16, 5, 7)] * 2


def test_saved_model_opens_with_the_same_outputs_and_trains(tmp_path):
    model = build_navit(
        {"pool_type": "attn_qknorm", "norm_layer": "rmsnorm", "norm_method": "peri"}, drop_path_rate=0.5
    )
    model.save_pretrained(tmp_path)
    opened, images = RadioModel.from_pretrained(tmp_path), torch.rand(2, 3, 20, 28)
    with torch.no_grad():
        torch.testing.assert_close(opened(images).summary, model(images).summary, rtol=0, atol=1e-6)
    out = opened.train()(images, window_size=2, draws=torch.rand(2, opened.num_draws))
    (out.summary.sum() + out.features.square().sum() + out.adaptors["teacher_a"].summary.sum()).backward()
    unused = [name for name, each in opened.named_parameters() if each.grad is None and "adaptors" not in name]
    assert not unused


def test_new_weights_are_drawn_as_nvidias(tmp_path):
    model = build_navit({"scaled_by_depth": True}, hidden_size=64, use_layer_scale=True, num_hidden_layers=8)
    gain = math.log(16) ** 0.5
    blocks = [module for module in model.modules() if isinstance(module, NavitBlock)]
    for index, block in enumerate(blocks):
        assert torch.equal(block.ls1.grandma, torch.full((64,), (index + 1) ** -0.5))
    parts = torch.stack([block.attn.qkv.weight for block in blocks]).unflatten(1, (3, 64)).std(dim=(0, 2, 3))
    torch.testing.assert_close(parts, torch.tensor([1.0, 1.0, gain]) / 8, rtol=0.05, atol=0)
    assert blocks[0].mlp.fc1.weight.std().item() == pytest.approx(gain * (2 / (64 + 256)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(kind):
    model, images = build_navit(), torch.rand(1, 3, 20, 28)
    with torch.no_grad():
        expected = model(images).features
        found = model.to(kind)(images.to(kind)).features.float()
    assert (found - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"options": {"norm": "pre"}}, "navit.norm"),
        ({"options": {"pool_type": "mean"}}, "navit.pool_type"),
        ({"options": {"global_blocks": [3]}}, "navit.global_blocks"),
        ({"options": {"inner_summary_idxs": [2]}}, "navit.inner_summary_idxs"),
        ({"num_attention_heads": 8}, "hidden_size"),
        ({"use_patch_bias": False}, "use_patch_bias"),
        ({"summary_idxs": [0]}, "summary_idxs"),
        ({"video_temporal_patch_size": 2}, "video_temporal_patch_size"),
        ({"downscale_levels": [1]}, "downscale_levels"),
    ],
)
def test_wrong_options_are_named(fields, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        build_navit(**fields)


def test_clips_are_images_and_tasks_run(tmp_path):
    model, frames = build_navit(vitdet_window_size=2), torch.rand(2, 3, 3, 20, 28)
    with torch.no_grad():
        together = model(pixel_values_videos=frames).features
        torch.testing.assert_close(together[1, 2], model(frames[1, 2:]).features[0], rtol=0, atol=2e-6)
        segmenter = RadioForSemanticSegmentation(RadioConfig(**{**model.config.to_dict(), "segmentation_head": "dpt"}))
        assert segmenter(frames[:, 0]).logits.shape[0] == 2
    choice = model.predict_window_cost(20, 28, 2)
    assert choice.latency_ms > 0
