"""Prepacked weights: the same features, of a model that is for inference on a CPU alone and says so."""

import copy
import pickle
import re
from typing import Any

import peft
import pytest
import torch
from task_models import EVERY_MODEL, build, images, tensors_of
from torch import nn
from transformers import AutoModel

from modeling_radio import RadioConfig, RadioModel, prepacking_radio
from modeling_radio.prepacking_radio import PrepackedLinear


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN")
IMAGES = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> RadioModel:
    torch.manual_seed(0)
    return RadioModel(RadioConfig.from_preset("radio-test")).eval()


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if type(module) is nn.Linear]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", ["global", 2])
def test_features_stay(model, dtype, window):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("bfloat16 is not for this processor")
    model, images = model.to(dtype), IMAGES.to(dtype)
    layers = len(linear_layers(model))
    with torch.no_grad():
        expected = model(images, window_size=window)
    assert model.prepack_weights() is model
    assert not linear_layers(model)
    assert sum(isinstance(module, PrepackedLinear) for module in model.modules()) == layers > 0
    answer = model(images, window_size=window)  # without `no_grad`, and yet without gradients
    assert not answer.features.requires_grad
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    for name in ("features", "summary"):
        torch.testing.assert_close(answer[name], expected[name], **tolerance)
        assert answer[name].dtype == dtype
    model.prepack_weights()  # again
    assert torch.equal(model(images, window_size=window).features, answer.features)


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
    assert not linear_layers(model.prepack_weights())
    model.to("cpu")  # as pipelines say
    for answer, tensor in zip(tensors_of(model(batch)), expected, strict=True):
        error = (answer.double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-9)
        assert error < (1e-4 if dtype == torch.float32 else 0.1)


def test_no_weights_are_held_twice(model):
    before = sum(parameter.numel() for parameter in model.parameters())
    packed = sum(layer.weight.numel() + (layer.bias is not None) * layer.out_features for layer in linear_layers(model))
    model.prepack_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == before - packed


def test_what_it_is_not_for_is_refused_before_anything_changes(model, tmp_path):
    model.prepack_weights()
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


def test_copies_and_compiled_models_answer_alike(model):
    expected = model.prepack_weights()(IMAGES).features
    other, seen = copy.deepcopy(model), []
    layers = [next(each for each in one.modules() if isinstance(each, PrepackedLinear)) for one in (model, other)]
    layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(other(IMAGES).features, expected)
    assert torch.equal(model(IMAGES).features, expected)
    assert len(seen) == 1
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(IMAGES).features, expected)


def test_opened_folder_is_prepacked_in_one_line(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).prepack_weights()
    with torch.no_grad():
        torch.testing.assert_close(again(IMAGES).features, model(IMAGES).features)


def test_windows_are_chosen_with_the_weights_counted(model):
    budget = {"max_memory_gib": 8.0}
    choice = model.choose_window_size(64, 64, **budget)
    assert copy.deepcopy(model).prepack_weights().choose_window_size(64, 64, **budget).memory_gib == choice.memory_gib


def test_times_before_are_forgotten(model):
    model.choose_window_size(64, 64, max_latency_ms=1e4)
    assert model._block_costs
    assert not model.prepack_weights()._block_costs


def test_hooks_are_not_lost(model):
    layer = linear_layers(model)[0]
    handle = layer.register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ValueError, match="would lose the hooks on a layer"):
        model.prepack_weights()
    assert layer in linear_layers(model)
    handle.remove()
    model.prepack_weights()


def test_detectors_stay_as_they_are_under_a_cast_that_changes_nothing():
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("bfloat16 is not for this processor")
    model = build("detector").to(torch.bfloat16).prepack_weights()
    model.to(torch.bfloat16)
    assert {layer.weight.dtype for layer in model.modules() if isinstance(layer, PrepackedLinear)} == {
        torch.float32,
        torch.bfloat16,
    }
    with pytest.raises(RuntimeError, match=r"cannot go to cpu in torch\.float32"):
        model.float()


def test_weights_that_cannot_be_prepacked_are_left(model, monkeypatch):
    half = copy.deepcopy(model).half()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(ValueError, match=re.escape("weights in torch.float16") + ".*`dtype` one of torch.float32"):
        half.prepack_weights()
    assert linear_layers(half)
    with pytest.raises(ValueError, match=r"on 'meta': open the model there, without `device_map`"):
        model.to("meta").prepack_weights()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_merged_first(model):
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"]))
    with pytest.raises(ValueError, match="merge_and_unload"):
        model.prepack_weights()
    merged = tuned.merge_and_unload()
    assert not linear_layers(merged.prepack_weights())


def test_quantized_layers_stay(model):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig(), lambda module, name: "qkv" in name)
    with torch.no_grad():
        expected = model(IMAGES).features
    model.prepack_weights()
    assert len(linear_layers(model)) == model.config.num_hidden_layers
    torch.testing.assert_close(model(IMAGES).features, expected, atol=1e-3, rtol=1e-3)


def test_missing_library_is_named(model, monkeypatch):
    monkeypatch.setattr(prepacking_radio.torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs oneDNN"):
        model.prepack_weights()
