"""Each step of RADSeg against a slow reading of its formula, with whole matrices."""

import pytest
import torch
from refusals import refused, wrong
from tiny_eradio import build_eradio
from tiny_networks import build_wrapped
from tiny_radio1d import build_radio1d
from tiny_sam3 import build_tracker
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_radio import (
    RadioConfig,
    RadioForZeroShotImageClassification,
    RadioImageProcessor,
    RadioModel,
    regions_radio,
)
from modeling_radio import radseg_radio as radseg
from modeling_radio.radseg_radio import (
    LEFT_OUT,
    SCALING,
    aggregate,
    attend_recursively,
    choose_scra,
    find_unlikely,
    gather_alike,
    slide,
)


WIDTH = 12
PLAIN = {"scra": None, "scga": None, "sliding": None, "denoising": None}


def build(build_dual_encoder, **fields):
    head = {"summary_dim": WIDTH, "feature_dim": WIDTH, "hidden_size": 24}
    preset = {"vitdet_num_windowed": 1, "initializer_range": 0.2, **fields}
    config = RadioConfig.from_preset("radio-test", adaptors=[{"name": "clip", **head}], **preset)
    model = RadioForZeroShotImageClassification.from_parts(RadioModel(config), build_dual_encoder("clip", WIDTH))
    return model.double().eval()


@pytest.fixture
def model(build_dual_encoder):
    return build(build_dual_encoder)


def images(height, width, number=1):
    return torch.rand(number, 3, height, width, dtype=torch.float64)


TEXTS = torch.eye(WIDTH, dtype=torch.float64)[:4]


def softmax_mean(similarities, values):
    """Mean of values by a softmax over each row, of which entries of -inf are no part."""
    weights = similarities.exp()
    return weights @ values / weights.sum(dim=-1, keepdim=True)


def cosines_of(vectors):
    return torch.stack([torch.cosine_similarity(each, vectors, dim=-1) for each in vectors])


def scga_by_hand(patches, scaling):
    cosines = cosines_of(patches)
    return softmax_mean(
        (scaling * (cosines - cosines.mean())).masked_fill(cosines < cosines.mean(), -torch.inf), patches
    )


def scra_by_hand(attention, tokens, scaling):
    """Recursive attention of one image, `(length, hidden)`, head by head."""
    hidden, size = tokens.shape[1], attention.head_dim
    query, key, value = (tokens @ attention.qkv.weight.T + attention.qkv.bias).split(hidden, dim=1)
    heads = [slice(start, start + size) for start in range(0, hidden, size)]
    first = [softmax_mean(query[:, head] @ key[:, head].T / size**0.5, value[:, head]) for head in heads]
    first = torch.cat(first, dim=1) @ attention.proj.weight.T + attention.proj.bias
    second = []
    for head in heads:
        cosines = cosines_of(first[:, head])
        second.append(softmax_mean((scaling * cosines).masked_fill(cosines < 0, -torch.inf), value[:, head]))
    return torch.cat(second, dim=1) @ attention.proj.weight.T + attention.proj.bias


@torch.no_grad()
@pytest.mark.parametrize("scaling", [SCALING, 2.5])
def test_scga_equals_the_formula_whatever_the_chunks(monkeypatch, scaling):
    patches = torch.randn(2, 35, 16, dtype=torch.float64) + 0.7
    expected = torch.stack([scga_by_hand(each, scaling) for each in patches])
    for most in (radseg.MAX_SIMILARITIES, 2 * 35 * 4, 1):
        monkeypatch.setattr(radseg, "MAX_SIMILARITIES", most)
        torch.testing.assert_close(aggregate(patches, scaling), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(aggregate(patches.float(), scaling).double(), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, patches, atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("scaling", [SCALING, 2.5])
def test_scra_equals_the_formula(model, scaling):
    attention = model.radio_model.model.blocks[-1].attn
    tokens = torch.randn(2, 21, attention.proj.in_features, dtype=torch.float64)
    expected = torch.stack([scra_by_hand(attention, each, scaling) for each in tokens])
    torch.testing.assert_close(attend_recursively(attention, tokens, scaling), expected, atol=1e-9, rtol=0)
    assert not torch.allclose(attention(tokens), expected, atol=1e-3)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that any operation gave."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.untyped_storage().nbytes() // each.element_size())
        return found


def test_the_matrix_is_never_in_memory_as_a_whole(monkeypatch):
    patches = torch.randn(1, 400, 8)
    monkeypatch.setattr(radseg, "MAX_SIMILARITIES", 10 * 400)
    with LargestTensor() as seen:
        aggregate(patches, SCALING)
    assert seen.largest == 10 * 400


@pytest.mark.parametrize("patches", [torch.ones(1, 9, 4), torch.zeros(1, 9, 4), torch.randn(1, 1, 4)])
def test_patches_that_are_all_alike_stay(patches):
    torch.testing.assert_close(aggregate(patches, SCALING), patches)


def test_noise_within_alike_patches_is_averaged_out():
    is_right = torch.arange(64) % 8 >= 4
    features = torch.stack([is_right, ~is_right], dim=1).float()
    values = features + 0.5 * torch.randn(64, 2)
    gathered = gather_alike(features, values, SCALING, 0.5)
    for side in (is_right, ~is_right):
        torch.testing.assert_close(gathered[side], values[side].mean(0).expand(32, -1), atol=1e-5, rtol=0)


def tokens_by_hand(model, pixels, window_size=None):
    """Patch tokens with SCRA of one image, `(patches, hidden)`, by a loop over the blocks."""
    network = model.radio_model
    trunk, block, depth = network.model, network.model.blocks[-1], len(network.model.blocks)
    states = network(pixels, window_size=window_size, keep=[depth - 2]).kept[depth - 2]
    states = states + scra_by_hand(block.attn, block.norm1(states)[0], SCALING)
    return trunk.norm(states + block.mlp(block.norm2(states)))[0, model.config.num_prefix_tokens :]


def logits_by_hand(model, patches, rows, cols):
    aligned = model.radio_model.adaptors["clip"].head_mlp(patches)
    cosines = torch.stack([torch.cosine_similarity(aligned, text, dim=-1) for text in TEXTS])
    return model.logit_scale.exp() * cosines.unflatten(1, (rows, cols))


@torch.no_grad()
@pytest.mark.parametrize("window_size", [None, 2])
def test_recursive_attention_then_aggregation_then_the_head(model, window_size):
    pixels = images(64, 96)
    tokens = tokens_by_hand(model, pixels, window_size)
    found = model.segment(pixels, TEXTS, window_size=window_size, denoising=None).logits[0]
    expected = logits_by_hand(model, scga_by_hand(tokens, SCALING), 4, 6)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_windows_overlap_and_end_at_the_edges(model):
    pixels = images(64, 96)
    total, count = torch.zeros(4, 6, 32, dtype=torch.float64), torch.zeros(4, 6, 1)
    for top in (0, 16):
        for left in (0, 32, 48):
            part = model.radio_model(pixels[..., top : top + 48, left : left + 48]).tokens
            part = part[0, model.config.num_prefix_tokens :].unflatten(0, (3, 3))
            total[top // 16 :, left // 16 :][:3, :3] += part
            count[top // 16 :, left // 16 :][:3, :3] += 1
    expected = logits_by_hand(model, (total / count).flatten(0, 1), 4, 6)
    found = model.segment(pixels, TEXTS, **{**PLAIN, "sliding": (48, 32)}).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    rounded = model.segment(pixels, TEXTS, **{**PLAIN, "sliding": (50, 30)}).logits[0]
    torch.testing.assert_close(rounded, found)


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_windows_are_those_of_the_authors_whatever_the_pass(monkeypatch, at_once):
    monkeypatch.setattr(radseg, "WINDOWS_AT_ONCE", at_once)
    seen = []

    def encode(windows):
        seen.extend(windows[:, 0, 0, 0].tolist())
        return windows[:, :1, ::16, ::16]

    row = torch.arange(608.0).expand(1, 1, 336, 608)
    assert torch.equal(slide(row, (336, 224), 16, encode), row[..., ::16, ::16])
    assert seen == [0, 224, 272]


@torch.no_grad()
def test_classes_that_no_patch_is_sure_of_are_left_out(model):
    pixels = images(64, 96)
    plain = model.segment(pixels, TEXTS, **PLAIN).logits[0]
    best = (100 * plain / model.logit_scale.exp()).softmax(dim=0).amax(dim=(1, 2))
    limit = best.sort().values[1:3].mean().item()
    found = model.segment(pixels, TEXTS, **{**PLAIN, "denoising": limit}).logits[0]
    is_out = best < limit
    assert is_out.sum() == 2
    assert (found[is_out] == LEFT_OUT).all()
    assert torch.equal(found[~is_out], plain[~is_out])
    labels = RadioImageProcessor().post_process_semantic_segmentation
    (shown,) = labels(model.segment(pixels, TEXTS, **{**PLAIN, "denoising": limit}), target_sizes=[(50, 70)])
    assert not torch.isin(shown, is_out.nonzero().flatten()).any()


def test_each_image_has_its_own_classes_and_keeps_all_where_none_is_sure():
    cosines = torch.zeros(2, 3, 1, 2)
    cosines[0, 1, 0, 1] = 1.0
    is_out = find_unlikely(cosines, 0.5)[..., 0, 0]
    assert is_out.tolist() == [[True, False, True], [False, False, False]]


@torch.no_grad()
@pytest.mark.parametrize(
    "step", [{"scra": 10.0}, {"scra": 3.0}, {"scga": 10.0}, {"scga": 3.0}, {"sliding": (48, 32)}, {"sliding": (32, 32)}]
)
@pytest.mark.parametrize("source", ["summary_head", "features"])
def test_each_step_changes_the_map_alone_and_with_others(model, step, source):
    pixels = images(64, 96)
    for others in (PLAIN, {"denoising": None, "sliding": (64, 64)}):
        without, with_step = (
            model.segment(pixels, TEXTS, source, **{**others, **steps}).logits for steps in (dict.fromkeys(step), step)
        )
        assert with_step.isfinite().all()
        assert (with_step - without).abs().max() > 1e-3


@torch.no_grad()
def test_padded_images_are_segmented_without_their_padding(model):
    """Padding would move SCGA's mean, fill windows, and be sure of words that no part of the image is sure of."""
    sizes, steps = [(64, 32), (32, 48), (64, 32)], {"sliding": (48, 32), "denoising": 0.26}
    pixels, mask = torch.zeros(3, 3, 80, 64, dtype=torch.float64), torch.zeros(3, 80, 64, dtype=torch.long)
    alone = []
    for number, (height, width) in enumerate(sizes):
        picture = images(height, width)
        pixels[number, :, :height, :width], mask[number, :height, :width] = picture[0], 1
        alone.append(model.segment(picture, TEXTS, **steps).logits[0])
    output = model.segment(pixels, TEXTS, pixel_mask=mask, **steps)
    assert output.logits.shape == (3, len(TEXTS), 5, 4)
    found = RadioImageProcessor().post_process_features(output.logits, pixel_mask=mask)
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other)
    assert (output.logits == LEFT_OUT).sum() >= len(TEXTS) * (3 * 20 - 8 - 6 - 8)
    with pytest.raises(ValueError, match="`pixel_mask`"):
        model.segment(pixels, TEXTS, pixel_mask=mask[:1], **steps)


@torch.no_grad()
def test_a_patch_of_zeros_resembles_no_word_and_leaves_denoising_on(model):
    patches = torch.zeros(1, WIDTH, 1, 2, dtype=torch.float64)
    patches[0, 1, 0, 0] = 1  # the second word alone
    logits = model.compare_patches(patches, TEXTS, 0.9)
    assert logits.isfinite().all()
    assert (logits == LEFT_OUT).flatten(2).all(2).tolist() == [[True, False, True, True]]


@torch.no_grad()
def test_packed_images_are_those_of_one_at_a_time(model):
    grids = [(4, 6), (2, 3), (4, 6), (1, 1)]
    pictures = [images(16 * rows, 16 * cols) for rows, cols in grids]
    packed = torch.cat([model.radio_model.model.patch_generator.split_patches(each)[0] for each in pictures])
    steps = {"sliding": (48, 32), "denoising": 0.3}
    found = model.segment(packed, TEXTS, image_grid_hw=torch.tensor(grids), **steps).logits
    alone = [model.segment(each, TEXTS, **steps).logits[0].flatten(1).T for each in pictures]
    torch.testing.assert_close(found, torch.cat(alone))
    batch = torch.cat([pictures[0], pictures[2]])
    together = model.segment(batch, TEXTS, **steps).logits.flatten(2).mT
    torch.testing.assert_close(together.flatten(0, 1), torch.cat([alone[0], alone[2]]))
    with pytest.raises(ValueError, match="`sam`"):
        model.segment(packed, TEXTS, image_grid_hw=torch.tensor(grids), sam=model)


@torch.no_grad()
def test_outlines_are_sams_where_it_is_given(build_dual_encoder, monkeypatch):
    model, tracker, pixels = build(build_dual_encoder).float(), build_tracker(), torch.rand(2, 3, 64, 96)
    own = model.segment(pixels, TEXTS.float(), **PLAIN).logits
    likely = (100 * own / model.logit_scale.exp()).softmax(dim=1)
    monkeypatch.setattr(regions_radio, "LEAST_AREA", 1)
    refine, refined = regions_radio.refine_by_sam, []

    def keep(sam, images, probabilities):
        assert sam is tracker
        assert torch.equal(images, pixels)
        torch.testing.assert_close(probabilities, likely, atol=1e-4, rtol=0)
        refined.append(refine(sam, images, probabilities, least_iou=-10.0))
        return refined[0]

    monkeypatch.setattr(regions_radio, "refine_by_sam", keep)
    found = model.segment(pixels, TEXTS.float(), **PLAIN, sam=tracker).logits
    torch.testing.assert_close(found.exp(), refined[0], atol=1e-6, rtol=0)
    assert found.shape == (2, 4, 64, 96)
    assert found.isfinite().all()
    enlarged = torch.nn.functional.interpolate(likely, (64, 96), mode="bilinear")
    assert not torch.allclose(found.exp(), enlarged, atol=1e-2)


@torch.no_grad()
def test_one_block_and_a_final_norm_are_no_exceptions(build_dual_encoder):
    fields = {"num_hidden_layers": 1, "vitdet_num_windowed": 0, "use_final_norm": True, "use_layer_scale": True}
    model = build(build_dual_encoder, **fields)
    pixels = images(32, 32)
    network, block = model.radio_model, model.radio_model.model.blocks[0]
    embedded = network(pixels).embedded
    states = embedded + block.ls1(scra_by_hand(block.attn, block.norm1(embedded)[0], SCALING))
    states = network.model.norm(states + block.ls2(block.mlp(block.norm2(states))))
    found = model.segment(pixels, TEXTS, **{**PLAIN, "scra": "auto"}).logits[0]
    expected = logits_by_hand(model, states[0, model.config.num_prefix_tokens :], 2, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_gradients_reach_the_backbone(model):
    model.segment(images(32, 32), TEXTS).logits.sum().backward()
    assert model.radio_model.model.blocks[0].attn.qkv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("build_other", [build_eradio, build_radio1d, lambda: build_wrapped("ConvNeXt")])
def test_networks_without_such_a_block_have_no_scra(build_other):
    network = build_other().radio_model
    assert choose_scra(network, "auto") is None
    assert choose_scra(network, None) is None
    refused("scra", lambda: choose_scra(network, 10.0))


def test_another_attention_in_the_last_block_has_no_scra(model):
    model.radio_model.model.blocks[-1].attn = nn.Identity()
    assert choose_scra(model.radio_model, "auto") is None
    refused("scra", lambda: model.segment(images(32, 32), TEXTS, scra=10.0))


@wrong(scra=[0, "on"], scga=[-1.0, True], sliding=[336, (224, 336), (336, 0)], denoising=[1.5, "half"])
def test_steps_that_are_none_are_refused(model, name, value):
    refused(name, lambda: model.segment(images(32, 32), TEXTS, **{name: value}))
