"""What a GPU could do otherwise is tried; what this machine lacks is left out with its reason."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from benchmarks.inference_parts import gpu_choices
from benchmarks.inference_parts.gpu_choices import KERNELS, build_gpu_calls
from modeling_radio import RadioConfig, RadioModel


@pytest.fixture
def model() -> RadioModel:
    torch.manual_seed(0)
    return RadioModel(RadioConfig.from_preset("radio-test")).eval()


def test_what_runs_here_gives_the_same_features(model, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_choices, "KERNELS", {**KERNELS, "SDPA by the plain kernel": SDPBackend.MATH})
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, mode: compiled(network, backend="eager"))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image, window_size="global").features
        calls = build_gpu_calls(model, image)
        features = {name: call().features for name, call in calls.items()}
    left_out = [line.partition(" is left out: ") for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert {name for name, _, _ in left_out} >= {"SDPA by cuDNN", "FlashAttention 3"}  # which no CPU has
    assert all(reason for _, _, reason in left_out)
    assert {"SDPA by the plain kernel", "SDPA by FlashAttention", "compiled, CUDA graphs"} <= set(features)
    for name in set(features) - {"FP8"}:
        torch.testing.assert_close(features[name], expected, atol=1e-4, rtol=1e-4)
    assert model.config._attn_implementation == "sdpa"  # as before


@pytest.mark.gpu
def test_a_gpu_has_them(model) -> None:
    image = torch.rand(1, 3, 64, 64, device="cuda").bfloat16()
    with torch.no_grad():
        calls = build_gpu_calls(model.to("cuda", torch.bfloat16), image)
    assert {"SDPA by FlashAttention", "SDPA in little memory", "compiled, CUDA graphs"} <= set(calls)
