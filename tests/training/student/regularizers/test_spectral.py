import copy

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import functional as F
from two_forks import run_two_forks

from modeling_radio import RadioConfig, RadioModel
from training.student.regularizers import (
    MIN_SCALE,
    SCALE_SUFFIX,
    SpectralScale,
    _iterate,
    add_spectral_scales,
    fold_spectral_scales,
    update_spectral_norms,
)


def build_model(**fields) -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=2, adaptors=[adaptor], **fields)).eval()


def names_of_scales(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.endswith(SCALE_SUFFIX)]


def test_weights_keep_their_values_at_first() -> None:
    model, pixel_values = build_model(), torch.rand(2, 3, 32, 48)
    expected = model(pixel_values).features
    add_spectral_scales(model)
    torch.testing.assert_close(model(pixel_values).features, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("use_swiglu_ffn", "linears"),
    [(False, ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")), (True, ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"))],
)
def test_blocks_are_scaled_and_nothing_else(use_swiglu_ffn: bool, linears: tuple[str, ...]) -> None:
    model = build_model(use_swiglu_ffn=use_swiglu_ffn)
    add_spectral_scales(model)
    expected = {f"radio_model.model.blocks.{i}.{name}.{SCALE_SUFFIX}" for i in range(2) for name in linears}
    assert set(names_of_scales(model)) == expected
    shapes = {name: model.get_parameter(name).shape for name in names_of_scales(model)}
    chunks = {".qkv.": 3, ".w12.": 2}
    for name, shape in shapes.items():
        assert shape == (next((count for part, count in chunks.items() if part in name), 1), 1)


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_norm_of_each_part_is_its_scale(num_chunks: int) -> None:
    parametrization = SpectralScale(torch.randn(12, 7), num_chunks)
    weight = torch.randn(12, 7) * 5  # another weight than the one that it started from
    for _ in range(200):
        _iterate([parametrization], [weight])
    norms = torch.linalg.matrix_norm(parametrization(weight).unflatten(0, (num_chunks, -1)), ord=2)
    torch.testing.assert_close(norms, F.softplus(parametrization.scale.squeeze(1)) + MIN_SCALE)
    torch.testing.assert_close(parametrization(3 * weight), parametrization(weight))


def test_start_is_exact_only_above_the_smallest_scale() -> None:
    weak = torch.eye(4) * MIN_SCALE / 10
    scaled = SpectralScale(weak)(weak)
    assert torch.linalg.matrix_norm(scaled, ord=2).item() == pytest.approx(MIN_SCALE, rel=1e-4)
    assert torch.isfinite(SpectralScale(torch.zeros(4, 4))(torch.zeros(4, 4))).all()


def test_gradient_reaches_weight_and_scale_but_never_along_the_weight() -> None:
    weight = torch.randn(6, 5, requires_grad=True)
    parametrization = SpectralScale(weight.detach())
    (parametrization(weight) * torch.randn(6, 5)).sum().backward()
    assert weight.grad is not None
    assert parametrization.scale.grad is not None
    assert weight.grad.norm() > 0.1
    # The result does not depend on the weight's length.
    assert (weight.grad * weight).sum().item() == pytest.approx(0, abs=1e-5)


def test_one_update_moves_every_estimate() -> None:
    model = build_model()
    add_spectral_scales(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith((".left", ".right"))}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    update_spectral_norms(model)
    assert len(before) == 16
    assert all(not torch.equal(model.get_buffer(name), value) for name, value in before.items())


@pytest.mark.parametrize("use_swiglu_ffn", [False, True])
def test_sharded_weights_are_never_gathered_for_their_norms(use_swiglu_ffn: bool, tmp_path) -> None:
    whole = build_model(use_swiglu_ffn=use_swiglu_ffn)
    add_spectral_scales(whole)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter))

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
        for name, buffer in sharded.named_buffers():
            if name.endswith((".left", ".right")):
                torch.testing.assert_close(buffer, expected[name], rtol=1e-5, atol=1e-6)

    updated = copy.deepcopy(whole)
    for _ in range(2):
        update_spectral_norms(updated)
    expected = dict(updated.named_buffers())
    run_two_forks(check, tmp_path)


def test_folding_leaves_plain_weights_of_the_same_values() -> None:
    model, pixel_values = build_model(), torch.rand(2, 3, 32, 32)
    keys = model.state_dict().keys()
    add_spectral_scales(model)
    with torch.no_grad():
        for name in names_of_scales(model):
            model.get_parameter(name).add_(1)
    expected, folded = model(pixel_values).features, copy.deepcopy(model)
    fold_spectral_scales(folded)
    assert folded.state_dict().keys() == keys
    torch.testing.assert_close(folded(pixel_values).features, expected)
    assert names_of_scales(model)  # the copy alone was folded
    torch.testing.assert_close(model(pixel_values).features, expected)
