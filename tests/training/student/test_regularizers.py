import copy

import pytest
import torch
from comparisons import assert_same_weights
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import functional as F
from two_forks import run_two_forks

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.modeling_radio import ADAPTORS
from modeling_radio.training.student.regularizers import (
    MIN_SCALE,
    SCALE_SUFFIX,
    DampLinear,
    SpectralScale,
    _iterate,
    add_damp,
    add_spectral_scales,
    fold_spectral_scales,
    update_spectral_norms,
)


def build_model(**fields) -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=2, adaptors=[adaptor], **fields)).eval()


def change_weights(model: RadioModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def features_of(model: RadioModel) -> torch.Tensor:
    return model(torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))).features


class TestDamp:
    def test_noise_is_for_training_only_and_for_all_linear_layers_of_the_trunk(self) -> None:
        plain = build_model()
        noisy = copy.deepcopy(plain)
        add_damp(noisy, 0.1)
        assert noisy.state_dict().keys() == plain.state_dict().keys()
        assert_same_weights(noisy, plain)
        linears = {name: type(module) for name, module in noisy.named_modules() if isinstance(module, nn.Linear)}
        assert len(linears) > len([name for name, kind in linears.items() if kind is DampLinear]) == 1 + 2 * 4
        assert all((kind is DampLinear) != name.startswith(f"{ADAPTORS}.") for name, kind in linears.items())
        torch.testing.assert_close(features_of(noisy), features_of(plain), atol=1e-6, rtol=0)
        draws = torch.rand(2, noisy.num_draws)
        first, second = (noisy.train()(torch.ones(2, 3, 32, 32), draws=draws).features for _ in range(2))
        assert not torch.allclose(first, second)
        torch.testing.assert_close(features_of(copy.deepcopy(noisy).eval()), features_of(plain), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("sigma", [0.1, 0.25])
    def test_factors_have_mean_one_and_the_wanted_deviation(self, sigma: float) -> None:
        linear = nn.Linear(200, 300, bias=False)
        nn.init.ones_(linear.weight)
        factors = DampLinear(linear, sigma)(torch.eye(200))
        assert factors.mean().item() == pytest.approx(1, abs=0.005)
        assert factors.std().item() == pytest.approx(sigma, rel=0.02)

    def test_gradient_is_that_of_the_noisy_weight_unscaled(self) -> None:
        linear, inputs = nn.Linear(5, 3), torch.randn(4, 5)
        torch.manual_seed(3)
        DampLinear(linear, 0.2)(inputs).square().sum().backward()
        torch.manual_seed(3)
        noisy = (linear.weight * (1 + 0.2 * torch.randn(3, 5))).detach().requires_grad_()
        F.linear(inputs, noisy, linear.bias).square().sum().backward()
        torch.testing.assert_close(linear.weight.grad, noisy.grad)


class TestSpectralScales:
    @pytest.mark.parametrize(
        ("use_swiglu_ffn", "chunks"),
        [
            (False, {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1}),
            (True, {"attn.qkv": 3, "attn.proj": 1, "mlp.w12": 2, "mlp.w3": 1}),
        ],
    )
    def test_blocks_alone_are_scaled_keep_their_values_and_can_be_folded(
        self, use_swiglu_ffn: bool, chunks: dict[str, int]
    ) -> None:
        model = build_model(use_swiglu_ffn=use_swiglu_ffn)
        expected, keys = features_of(model), model.state_dict().keys()
        add_spectral_scales(model)
        torch.testing.assert_close(features_of(model), expected, rtol=1e-4, atol=1e-6)
        scales = {name: each for name, each in model.named_parameters() if name.endswith(SCALE_SUFFIX)}
        assert {name: tuple(scale.shape) for name, scale in scales.items()} == {
            f"radio_model.model.blocks.{block}.{name}.{SCALE_SUFFIX}": (count, 1)
            for block in range(2)
            for name, count in chunks.items()
        }
        with torch.no_grad():
            for scale in scales.values():
                scale.add_(1)
        expected, folded = features_of(model), copy.deepcopy(model)
        fold_spectral_scales(folded)
        assert folded.state_dict().keys() == keys < model.state_dict().keys() | keys  # the copy alone was folded
        for each in (folded, model):
            torch.testing.assert_close(features_of(each), expected)

    @pytest.mark.parametrize("num_chunks", [1, 3])
    def test_norm_of_each_part_is_its_scale(self, num_chunks: int) -> None:
        parametrization = SpectralScale(torch.randn(12, 7), num_chunks)
        weight = torch.randn(12, 7) * 5  # another weight than the one that it started from
        for _ in range(200):
            _iterate([parametrization], [weight])
        norms = torch.linalg.matrix_norm(parametrization(weight).unflatten(0, (num_chunks, -1)), ord=2)
        torch.testing.assert_close(norms, F.softplus(parametrization.scale.squeeze(1)) + MIN_SCALE)
        torch.testing.assert_close(parametrization(3 * weight), parametrization(weight))

    def test_start_is_exact_only_above_the_smallest_scale(self) -> None:
        weak = torch.eye(4) * MIN_SCALE / 10
        assert torch.linalg.matrix_norm(SpectralScale(weak)(weak), ord=2).item() == pytest.approx(MIN_SCALE, rel=1e-4)
        assert torch.isfinite(SpectralScale(torch.zeros(4, 4))(torch.zeros(4, 4))).all()

    def test_gradient_reaches_weight_and_scale_but_never_along_the_weight(self) -> None:
        weight = torch.randn(6, 5, requires_grad=True)
        parametrization = SpectralScale(weight.detach())
        (parametrization(weight) * torch.randn(6, 5)).sum().backward()
        assert parametrization.scale.grad.abs() > 0
        assert weight.grad.norm() > 0.1
        assert (weight.grad * weight).sum().item() == pytest.approx(0, abs=1e-5)  # the length does not matter

    @pytest.mark.parametrize("use_swiglu_ffn", [False, True])
    def test_updates_of_sharded_weights_are_exact_and_never_gather_them(self, use_swiglu_ffn: bool, tmp_path) -> None:
        whole = build_model(use_swiglu_ffn=use_swiglu_ffn)
        add_spectral_scales(whole)
        change_weights(whole)

        def check() -> None:
            sharded = copy.deepcopy(whole)
            mesh = init_device_mesh("cpu", (2,))
            for block in sharded.radio_model.model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(sharded, mesh=mesh)
            with CommDebugMode() as exchanges:
                update_spectral_norms(sharded)
            counts = {str(kind): count for kind, count in exchanges.get_comm_counts().items() if count}
            assert counts == {"c10d_functional.all_reduce": 2}
            update_spectral_norms(sharded)
            for name, expected in vectors.items():
                torch.testing.assert_close(sharded.get_buffer(name), expected, rtol=1e-5, atol=1e-6)

        updated = copy.deepcopy(whole)
        for _ in range(2):
            update_spectral_norms(updated)
        vectors = {name: each for name, each in updated.named_buffers() if name.endswith((".left", ".right"))}
        assert len(vectors) == 16
        assert all(not torch.equal(whole.get_buffer(name), vector) for name, vector in vectors.items())
        run_two_forks(check, tmp_path)
