"""Attention in blocks: equal to PyTorch's, and in its place exactly where it is faster."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_radio import RadioConfig, RadioModel, attention_functions_radio, encoder_radio
from modeling_radio.attention_functions_radio import blocked_attention_forward, eager_attention_forward


SHAPE = (2, 3, 7, 4)  # batch, heads, length, head_dim


@pytest.fixture
def model() -> RadioModel:
    torch.manual_seed(0)
    return RadioModel(RadioConfig.from_preset("radio-test")).eval().to(torch.bfloat16)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the segments that were attended to in blocks, on a processor for which blocks are faster."""
    seen: list[int] = []

    def watched(module: torch.nn.Module, query: torch.Tensor, *others: object, **options: float) -> object:
        seen.append(query.shape[2])
        return blocked_attention_forward(module, query, *others, **options)

    monkeypatch.setattr(attention_functions_radio, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(attention_functions_radio, "LEAST_SCORES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(encoder_radio, "blocked_attention_forward", watched)
    return seen


@pytest.mark.parametrize("scores", [1, 14, 49, 100, 10**6])  # a row, two rows, a head, two heads, all
@pytest.mark.parametrize("is_strided", [False, True])
def test_blocks_of_any_size_equal_sdpa(scores, is_strided, monkeypatch):
    monkeypatch.setattr(attention_functions_radio, "SCORES_OF_A_BLOCK", scores)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, 7, 3, 4).transpose(1, 2) if is_strided else torch.randn(SHAPE) for _ in range(3)
    )
    mixed, weights = blocked_attention_forward(torch.nn.Identity(), query, key, value, None, scaling=0.3)
    torch.testing.assert_close(mixed, F.scaled_dot_product_attention(query, key, value, scale=0.3).transpose(1, 2))
    assert weights is None


@pytest.mark.parametrize(("deviation", "offset"), [(1.0, 0.0), (3.0, 0.0), (3.0, 300.0)])
def test_bfloat16_is_nearly_as_near_as_sdpa(deviation, offset):
    """Also where all scores of a row share a large number, as those of trained networks do."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 300, 64) for _ in range(3))
    common = torch.randn(1, 2, 1, 64)
    query, key = deviation * query + common, key + offset / 8 * common / common.norm(dim=-1, keepdim=True)
    rounded = [tensor.bfloat16() for tensor in (query, key, value)]
    exact = F.scaled_dot_product_attention(*(tensor.double() for tensor in rounded)).transpose(1, 2)
    mixed, _ = blocked_attention_forward(torch.nn.Identity(), *rounded, None, scaling=1 / 8)
    assert (mixed.double() - exact).norm() / exact.norm() < 2**-6


@pytest.mark.parametrize(("window", "expected"), [("global", {4 * 4}), (2, {4, 4 * 4})])
def test_network_in_bfloat16_uses_blocks_and_answers_alike(window, expected, model, lengths, monkeypatch):
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    prefix = model.config.num_cls_tokens + model.config.num_registers
    with torch.no_grad():
        answer = model(pixels, window_size=window)
        assert {length - prefix * (length > 4) for length in lengths} == expected
        monkeypatch.setattr(encoder_radio, "is_faster_in_blocks", lambda query: False)
        other = model(pixels, window_size=window)
    assert not torch.equal(answer.features, other.features)  # roundings differ
    torch.testing.assert_close(answer.features, other.features, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_blocks_act_at_the_sizes_of_recipes(model, lengths, monkeypatch):
    """A batch of 64 images of 128 px, as the demo's, has scores enough; windows of two patches of one image do not."""
    monkeypatch.setattr(attention_functions_radio, "LEAST_SCORES", 2**18)
    pixels = torch.rand(64, 3, 128, 128).bfloat16()
    model(pixels, window_size="global")
    prefix = model.config.num_cls_tokens + model.config.num_registers
    assert set(lengths) == {8 * 8 + prefix}
    lengths.clear()
    model(pixels[:1], window_size=2)
    assert not lengths


def test_what_needs_another_function_keeps_it(model, lengths, monkeypatch):
    pixels = torch.rand(1, 3, 64, 64)
    model(pixels.bfloat16())  # gradients
    with torch.no_grad():
        model(pixels.bfloat16(), output_attentions=True)
        model.train()(pixels.bfloat16())  # of which reentrant checkpointing makes a second pass with gradients
        model.eval().float()(pixels)  # float32
        model.bfloat16()
        torch.compile(model, backend="eager")(pixels.bfloat16())
        for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(kernel):
                model(pixels.bfloat16())
        with monkeypatch.context() as patch:
            patch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", eager_attention_forward)
            model(pixels.bfloat16())  # another function by this name
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: 3)
            model(pixels.bfloat16())
        with monkeypatch.context() as patch:
            patch.setattr(attention_functions_radio, "LEAST_SCORES", 2**18)
            model(pixels.bfloat16())  # few scores
        monkeypatch.setattr(attention_functions_radio, "multiplies_bfloat16", lambda: False)
        model(pixels.bfloat16())
    assert not lengths


def test_functions_of_features_have_gradients(model, lengths):
    """In `torch.func` what a pass computes does not say that gradients of it are asked for."""
    pixels = torch.rand(1, 3, 64, 64).bfloat16()
    model.requires_grad_(False)
    weights = torch.randn(model.config.hidden_size).bfloat16()
    gradient = torch.func.grad(lambda weights: (model(pixels).features @ weights).sum())(weights)
    assert gradient.abs().sum() > 0
    tangent = torch.func.jvp(lambda pixels: model(pixels).features, (pixels,), (torch.ones_like(pixels),))[1]
    assert tangent.abs().sum() > 0


def test_processor_is_asked(monkeypatch):
    ask = attention_functions_radio.multiplies_bfloat16.__wrapped__
    for has_products in (False, True):
        for has_tiles in (False, True):
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=has_products: answer)
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=has_tiles: answer)
            assert ask() == (has_products and not has_tiles)
