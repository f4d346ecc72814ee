import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from training.student.build import checkpoint_blocks
from training.student.parameters import frozen_trunk, is_of_trunk


@pytest.fixture
def model() -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8, "feature_head": "attention"}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=2, adaptors=[adaptor])).train()


def loss_of(model: RadioModel) -> torch.Tensor:
    torch.manual_seed(0)
    output = model(torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)))
    assert output.features.requires_grad == (output.features.grad_fn is not None)
    return output.adaptors["t"].features.square().mean() + output.adaptors["t"].summary.square().mean()


@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_nothing_below_the_heads_has_a_graph_and_heads_learn_the_same(
    model: RadioModel, with_checkpoints: bool
) -> None:
    if with_checkpoints:
        checkpoint_blocks(model)
    loss_of(model).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    states = []
    hooks = [
        module.register_forward_hook(lambda *arguments: states.append(arguments[2]))
        for module in (model.radio_model.model.patch_generator, model.radio_model.model)
    ]
    with frozen_trunk(model):
        loss_of(model).backward()
    tensors = [states[0], states[1][0]]
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in tensors)
    for name, parameter in model.named_parameters():
        if is_of_trunk(name):
            assert parameter.grad is None, name
            assert parameter.requires_grad
        else:
            assert torch.equal(parameter.grad, expected[name]), name
    for hook in hooks:
        hook.remove()


def test_afterwards_the_trunk_learns_again_even_if_a_pass_failed(model: RadioModel) -> None:
    with frozen_trunk(model), pytest.raises(ValueError, match="multiples"):
        model(torch.rand(1, 3, 31, 32))
    assert torch.is_grad_enabled()
    loss_of(model).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
