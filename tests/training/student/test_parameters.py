import pytest
import torch
from torch import nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.modeling_radio import DECODER_PREFIX, FILLERS, POSITIONS, PREFIX_TOKENS
from modeling_radio.training.student.build import checkpoint_blocks
from modeling_radio.training.student.parameters import decayed_parameters, frozen_trunk, is_of_trunk
from modeling_radio.training.student.regularizers import SCALE_SUFFIX


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.mlp.fc1.weight", (8, 4), True),
        (f"blocks.0.mlp.fc1.{SCALE_SUFFIX}", (1, 1), True),
        ("blocks.0.mlp.fc1.bias", (8,), False),
        ("blocks.0.norm1.weight", (4,), False),
        (POSITIONS, (1, 16, 4), False),
        (f"base_model.model.{POSITIONS}", (1, 16, 4), False),
        (PREFIX_TOKENS, (8, 4), False),
        (DECODER_PREFIX, (8, 4), False),
        (FILLERS, (16, 4), False),
    ],
)
def test_matrices_decay_but_not_positions_and_prefix_tokens(name: str, shape: tuple[int, ...], expected: bool) -> None:
    parameter, owner = nn.Parameter(torch.zeros(shape)), nn.Module()
    *parts, own = name.split(".")
    model = owner
    for part in parts:
        owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.register_parameter(own, parameter)
    assert (parameter in decayed_parameters(model)) is expected


@pytest.fixture
def model() -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8, "feature_head": "attention"}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=2, adaptors=[adaptor])).train()


def loss_of(model: RadioModel) -> torch.Tensor:
    torch.manual_seed(0)
    output = model(torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)))
    return output.adaptors["t"].features.square().mean() + output.adaptors["t"].summary.square().mean()


@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_frozen_trunk_has_no_graph_and_heads_learn_the_same(model: RadioModel, with_checkpoints: bool) -> None:
    if with_checkpoints:
        checkpoint_blocks(model)
    loss_of(model).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    states = []
    for module in (model.radio_model.model.patch_generator, model.radio_model.model):
        module.register_forward_hook(lambda *arguments: states.append(arguments[2]))
    with frozen_trunk(model):
        loss_of(model).backward()
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in (states[0], states[1][0]))
    of_adaptors = {id(parameter) for parameter in model.radio_model.adaptors.parameters()}
    for name, parameter in model.named_parameters():
        assert is_of_trunk(name) is (id(parameter) not in of_adaptors)
        assert parameter.requires_grad
        assert parameter.grad is None if is_of_trunk(name) else torch.equal(parameter.grad, expected[name])


def test_trunk_learns_again_afterwards_even_if_a_forward_pass_failed(model: RadioModel) -> None:
    with frozen_trunk(model), pytest.raises(ValueError, match="multiples"):
        model(torch.rand(1, 3, 31, 32))
    assert torch.is_grad_enabled()
    loss_of(model).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
