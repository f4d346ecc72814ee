"""Attention in blocks and prepacked weights on a CPU: the same features, and only where they were chosen."""

import copy
import pickle
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from task_models import EVERY_MODEL, build, images, tensors_of
from torch import Tensor, nn
from transformers import AutoModel

from modeling_radio import RadioConfig, RadioModel, cpu
from modeling_radio.cpu import PrepackedLinear, blocked_attention_forward, choose_cpu_blocks, prepack


IMAGES = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> RadioModel:
    torch.manual_seed(0)
    return RadioModel(RadioConfig.from_preset("radio-test")).eval()


# Attention in blocks


SHAPE = (2, 3, 7, 4)  # batch, heads, length, head_dim


@pytest.fixture
def in_blocks() -> RadioModel:
    torch.manual_seed(0)
    model = RadioModel(RadioConfig.from_preset("radio-test")).eval().to(torch.bfloat16)
    model.set_attn_implementation("cpu_blocks")
    return model


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the segments that were attended to in blocks, on a processor for which blocks are faster."""
    seen: list[int] = []

    def watched(query: Tensor, *others: Any) -> Tensor:
        seen.append(query.shape[2])
        return blocked_attention_forward(query, *others)

    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(cpu, "LEAST_SCORES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(cpu, "blocked_attention_forward", watched)
    return seen


@pytest.mark.parametrize("scores", [1, 14, 49, 100, 10**6])  # a row, two rows, a head, two heads, all
@pytest.mark.parametrize("is_strided", [False, True])
def test_blocks_of_any_size_equal_sdpa(scores, is_strided, monkeypatch):
    monkeypatch.setattr(cpu, "SCORES_OF_A_BLOCK", scores)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, 7, 3, 4).transpose(1, 2) if is_strided else torch.randn(SHAPE) for _ in range(3)
    )
    mixed = blocked_attention_forward(query, key, value, 0.3)
    torch.testing.assert_close(mixed, F.scaled_dot_product_attention(query, key, value, scale=0.3).transpose(1, 2))


@pytest.mark.parametrize(("deviation", "offset"), [(1.0, 0.0), (3.0, 0.0), (3.0, 300.0)])
def test_bfloat16_is_nearly_as_near_as_sdpa(deviation, offset):
    """Also where all scores of a row share a large number, as those of trained networks do."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 300, 64) for _ in range(3))
    common = torch.randn(1, 2, 1, 64)
    query, key = deviation * query + common, key + offset / 8 * common / common.norm(dim=-1, keepdim=True)
    rounded = [tensor.bfloat16() for tensor in (query, key, value)]
    exact = F.scaled_dot_product_attention(*(tensor.double() for tensor in rounded)).transpose(1, 2)
    mixed = blocked_attention_forward(*rounded, 1 / 8)
    assert (mixed.double() - exact).norm() / exact.norm() < 2**-6


@pytest.mark.parametrize(("window", "expected"), [("global", {4 * 4}), (2, {4, 4 * 4})])
def test_network_in_bfloat16_uses_blocks_and_answers_alike(window, expected, in_blocks, lengths):
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    prefix = in_blocks.config.num_cls_tokens + in_blocks.config.num_registers
    with torch.no_grad():
        answer = in_blocks(pixels, window_size=window)
        assert {length - prefix * (length > 4) for length in lengths} == expected
        in_blocks.set_attn_implementation("sdpa")
        lengths.clear()
        other = in_blocks(pixels, window_size=window)
    assert not lengths
    assert not torch.equal(answer.features, other.features)  # roundings differ
    torch.testing.assert_close(answer.features, other.features, atol=0.05, rtol=0.05)


def test_what_needs_another_function_keeps_it(in_blocks, lengths, monkeypatch):
    pixels = torch.rand(1, 3, 64, 64)
    in_blocks(pixels.bfloat16())  # gradients
    with torch.no_grad():
        in_blocks(pixels.bfloat16(), output_attentions=True)
        in_blocks.train()(pixels.bfloat16())  # of which reentrant checkpointing makes a second pass with gradients
        in_blocks.eval().float()(pixels)  # float32
        in_blocks.bfloat16()
        torch.compile(in_blocks, backend="eager")(pixels.bfloat16())
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: 3)
            in_blocks(pixels.bfloat16())
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "LEAST_SCORES", 2**18)
            in_blocks(pixels.bfloat16())  # few scores
        monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: False)
        in_blocks(pixels.bfloat16())
    assert not lengths


@torch.no_grad()
@pytest.mark.parametrize("window", ["global", 3])
def test_float32_equals_sdpa_to_the_bit(window, monkeypatch):
    torch.manual_seed(0)
    model, pixels = RadioModel(RadioConfig.from_preset("radio-test")).eval(), torch.rand(2, 3, 96, 64)
    expected = model(pixels, window_size=window).features
    model.set_attn_implementation("cpu_blocks")
    assert torch.equal(model(pixels, window_size=window).features, expected)
    monkeypatch.setattr(cpu, "LONG_SEGMENT", 4)  # each head's tokens are brought together first
    assert torch.equal(model(pixels, window_size=window).features, expected)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_every_model_takes_blocks(name):
    """Detectors and text towers too, whose own attention has masks or is in float32."""
    torch.manual_seed(0)
    model, batch = build(name), images()
    with torch.no_grad():
        expected = tensors_of(model(batch))
        model.set_attn_implementation("cpu_blocks")
        answers = tensors_of(model(batch))
    assert all(torch.equal(*pair) for pair in zip(answers, expected, strict=True))


def test_opened_with_blocks(tmp_path, model):
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True, attn_implementation="cpu_blocks")
    with torch.no_grad():
        assert torch.equal(again(IMAGES).features, model(IMAGES).features)
    again.save_pretrained(tmp_path / "again")
    assert "cpu_blocks" not in (tmp_path / "again" / "config.json").read_text()


def test_only_sdpa_is_replaced(model):
    model.set_attn_implementation("eager")
    choose_cpu_blocks(model)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    fields = model.config.to_json_string()
    choose_cpu_blocks(model)
    assert model.config._attn_implementation == "cpu_blocks"
    assert model.config.to_json_string() == fields
    meta = RadioModel(model.config).to("meta")
    meta.set_attn_implementation("sdpa")
    choose_cpu_blocks(meta)
    assert meta.config._attn_implementation == "sdpa"


# Prepacked weights


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN")


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if type(module) is nn.Linear]


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EVERY_MODEL)
def test_every_model_answers_as_before(name, dtype):
    """Heads and adaptors are prepacked too, and detectors, which compute in float32 in a model of another type."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("bfloat16 is not for this processor")
    torch.manual_seed(0)
    model, batch = build(name).to(dtype), images().to(dtype)
    with torch.no_grad():
        expected = tensors_of(model(batch))
    assert not linear_layers(prepack(model))
    model.to("cpu")  # as pipelines say
    for answer, tensor in zip(tensors_of(model(batch)), expected, strict=True):
        error = (answer.double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-9)
        assert error < (1e-4 if dtype == torch.float32 else 0.1)


@needs_onednn
def test_what_it_is_not_for_is_refused_before_anything_changes(model, tmp_path):
    prepack(model)
    expected = model(IMAGES).features
    refused: dict[str, Any] = {
        "cannot go to cpu in torch.bfloat16": lambda: model.bfloat16(),
        "cannot go to meta in torch.float32": lambda: model.to("meta"),
        "gives no gradients": lambda: model(IMAGES.clone().requires_grad_()),
        "is not saved": model.state_dict,
        "has no weights to save": lambda: model.save_pretrained(tmp_path / "saved"),
        "has no weights to load into": lambda: model.load_state_dict({}, strict=False),
        "takes no other weights": lambda: model.radio_model.load_state_dict({}, strict=False),
        "is not pickled": lambda: pickle.dumps(model),
    }
    for message, call in refused.items():
        with pytest.raises(RuntimeError, match=f"{message}.*from_pretrained"):
            call()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast included"):
        model(IMAGES)
    with pytest.raises(RuntimeError, match="setup_context"):  # PyTorch's own words: the function has no derivative
        torch.func.jvp(lambda images: model(images).features, (IMAGES,), (torch.ones_like(IMAGES),))
    layer = next(module for module in model.modules() if isinstance(module, PrepackedLinear))
    with pytest.raises(RuntimeError, match=f"inputs {layer.in_features} wide, got the shape"):
        layer(torch.rand(2, layer.in_features + 1))
    assert not (tmp_path / "saved").exists()
    assert torch.equal(model.to("cpu").float()(IMAGES).features, expected)


@needs_onednn
def test_copies_and_compiled_models_answer_alike(model):
    expected = prepack(model)(IMAGES).features
    other, seen = copy.deepcopy(model), []
    layers = [next(each for each in one.modules() if isinstance(each, PrepackedLinear)) for one in (model, other)]
    layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(other(IMAGES).features, expected)
    assert torch.equal(model(IMAGES).features, expected)
    assert len(seen) == 1
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(IMAGES).features, expected)


@needs_onednn
def test_windows_are_chosen_with_the_weights_counted_and_measured_anew(model):
    budget = {"max_memory_gib": 8.0}
    choice = model.choose_window_size(64, 64, **budget)
    model.choose_window_size(64, 64, max_latency_ms=1e4)
    assert model._block_costs
    assert not prepack(model)._block_costs
    assert model.choose_window_size(64, 64, **budget).memory_gib == choice.memory_gib


@needs_onednn
def test_hooks_are_not_lost(model):
    layer = linear_layers(model)[0]
    handle = layer.register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ValueError, match="would lose the hooks on a layer"):
        prepack(model)
    assert layer in linear_layers(model)
    handle.remove()
    prepack(model)


@needs_onednn
def test_weights_that_cannot_be_prepacked_are_left(model, monkeypatch):
    half = copy.deepcopy(model).half()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(ValueError, match="`dtype`"):
        prepack(half)
    assert linear_layers(half)
    with pytest.raises(ValueError, match="'meta'"):
        prepack(copy.deepcopy(model).to("meta"))
    monkeypatch.setattr(cpu.torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="oneDNN"):
        prepack(model)


@needs_onednn
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_merged_first(model):
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"]))
    with pytest.raises(ValueError, match="merge_and_unload"):
        prepack(model)
    merged = tuned.merge_and_unload()
    assert not linear_layers(prepack(merged))


@needs_onednn
def test_quantized_layers_stay(model):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig(), lambda module, name: "qkv" in name)
    with torch.no_grad():
        expected = model(IMAGES).features
    prepack(model)
    assert len(linear_layers(model)) == model.config.num_hidden_layers
    torch.testing.assert_close(model(IMAGES).features, expected, atol=1e-3, rtol=1e-3)
