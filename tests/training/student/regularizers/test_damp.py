import copy

import pytest
import torch
from comparisons import assert_same_weights
from torch import nn
from torch.nn import functional as F

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.modeling_radio import ADAPTORS
from training.student.regularizers import DampLinear, add_damp


def build_model() -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1, adaptors=[adaptor])).eval()


def test_noise_is_for_training_only_and_leaves_the_keys_alone() -> None:
    plain, pixel_values = build_model(), torch.rand(2, 3, 32, 32)
    noisy = copy.deepcopy(plain)
    add_damp(noisy, 0.1)
    assert noisy.state_dict().keys() == plain.state_dict().keys()
    assert_same_weights(noisy, plain)
    torch.testing.assert_close(noisy(pixel_values).features, plain(pixel_values).features, atol=1e-6, rtol=0)
    draws = torch.rand(2, noisy.num_draws)
    first, second = (noisy.train()(pixel_values, draws=draws).features for _ in range(2))
    assert not torch.allclose(first, second)
    copied = copy.deepcopy(noisy).eval()
    torch.testing.assert_close(copied(pixel_values).features, plain(pixel_values).features, atol=1e-6, rtol=0)


def test_every_linear_layer_of_the_trunk_has_noise_and_none_of_the_adaptors() -> None:
    model = build_model()
    add_damp(model, 0.1)
    linears = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    trunk = {name for name in linears if not name.startswith(f"{ADAPTORS}.")}
    assert len(trunk) == 1 + 4
    assert len(linears) > len(trunk)
    assert {name for name, kind in linears.items() if kind is DampLinear} == trunk


@pytest.mark.parametrize("sigma", [0.1, 0.25])
def test_factors_have_mean_one_and_the_wanted_deviation(sigma: float) -> None:
    linear = nn.Linear(200, 300, bias=False)
    nn.init.ones_(linear.weight)
    factors = DampLinear(linear, sigma)(torch.eye(200))
    assert factors.mean().item() == pytest.approx(1, abs=0.005)
    assert factors.std().item() == pytest.approx(sigma, rel=0.02)


def test_gradient_is_that_of_the_noisy_weight_unscaled() -> None:
    linear, inputs = nn.Linear(5, 3), torch.randn(4, 5)
    torch.manual_seed(3)
    DampLinear(linear, 0.2)(inputs).square().sum().backward()
    torch.manual_seed(3)
    noisy = (linear.weight * (1 + 0.2 * torch.randn(3, 5))).detach().requires_grad_()
    F.linear(inputs, noisy, linear.bias).square().sum().backward()
    assert linear.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad, noisy.grad)
