"""Each optimizer as the recipe names it, on a tiny student: what moves how, and from when its steps count."""

import copy

import pytest
import torch
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from training.distillation.optimizers import OPTIMIZERS, build_optimizer
from training.recipe import OptimizerRecipe


BLOCK = "radio_model.model.blocks.0"
HEAD = "radio_model.adaptors.t.feat_mlp.fc1.weight"
QKV, FC1, BIAS = (f"{BLOCK}.{name}" for name in ("attn.qkv.weight", "mlp.fc1.weight", "mlp.fc1.bias"))


@pytest.fixture
def model() -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1, adaptors=[adaptor]))


def gradients_of(model: RadioModel, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def step(model: RadioModel, optimizer: torch.optim.Optimizer, seed: int, *frozen: str) -> None:
    """Take a step along random gradients; parameters whose names begin so have none."""
    for name, gradient in gradients_of(model, seed).items():
        model.get_parameter(name).grad = None if name.startswith(frozen or ("-",)) else gradient
    optimizer.step()


def weights_of(model: RadioModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_unknown_optimizer_is_refused(model: RadioModel) -> None:
    with pytest.raises(
        ValueError,
        match=r"`name` must be one of \['adamw', .*'muon'\], got 'adam'\. Did you mean 'adamw'\?",
    ):
        build_optimizer(model, OptimizerRecipe(name="adam"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_moves_by_about_the_learning_rate(model: RadioModel, name: str) -> None:
    before = weights_of(model)
    optimizer = build_optimizer(model, OptimizerRecipe(name=name, learning_rate=1e-3, weight_decay=0.1))
    step(model, optimizer, 0)
    for key, weight in model.named_parameters():
        assert (weight != before[key]).any(), key
        assert (weight - before[key]).square().mean().sqrt() < 2e-3, key  # NAdamW's first step is 1.9 of AdamW's


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_a_frozen_trunk_count_from_when_it_wakes(model: RadioModel, name: str) -> None:
    """The trunk after three frozen steps moves as that of a run that starts there, and stands still before."""
    recipe = OptimizerRecipe(name=name, learning_rate=1e-2, weight_decay=0.1)
    start, optimizer = weights_of(model), build_optimizer(model, recipe)
    for number in range(3):
        step(model, optimizer, number, "radio_model.model")
    assert torch.equal(model.get_parameter(QKV), start[QKV])
    for number in (3, 4):
        step(model, optimizer, number)
    woken, head = weights_of(model), model.get_parameter(HEAD).detach().clone()
    model.load_state_dict(start, strict=False)
    optimizer = build_optimizer(model, recipe)
    for number in (3, 4):
        step(model, optimizer, number)
    for key, weight in model.named_parameters():
        if key.startswith("radio_model.model"):
            assert torch.equal(weight, woken[key]), key
    assert not torch.allclose(model.get_parameter(HEAD), head)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_restored_is_the_state_saved(model: RadioModel, name: str) -> None:
    recipe = OptimizerRecipe(name=name, learning_rate=1e-2)
    optimizer = build_optimizer(model, recipe)
    step(model, optimizer, 0, "radio_model.model")
    step(model, optimizer, 1)
    saved, start = copy.deepcopy(optimizer.state_dict()), weights_of(model)
    restored = build_optimizer(model, recipe)
    restored.load_state_dict(saved)
    step(model, optimizer, 2)
    expected = weights_of(model)
    model.load_state_dict(start, strict=False)
    step(model, restored, 2)
    assert all(torch.equal(weight, expected[key]) for key, weight in model.named_parameters())


def test_adamw_is_its_formula(model: RadioModel) -> None:
    recipe = OptimizerRecipe(name="adamw", learning_rate=1e-2, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)
    optimizer = build_optimizer(model, recipe)
    start = {name: weights_of(model)[name].double() for name in (FC1, BIAS)}
    first, second = ({name: torch.zeros_like(weight) for name, weight in start.items()} for _ in range(2))
    for number in range(4):
        step(model, optimizer, number, *([FC1] if number < 2 else []))
        for name, weight in start.items():
            count = number + 1 - (2 if name == FC1 else 0)
            if count < 1:
                continue
            gradient = gradients_of(model, number)[name].double()
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            direction = first[name] / (1 - 0.8**count) / ((second[name] / (1 - 0.95**count)).sqrt() + 1e-6)
            decay = 0.1 if name == FC1 else 0
            start[name] = weight * (1 - 1e-2 * decay) - 1e-2 * direction
    for name, weight in start.items():
        torch.testing.assert_close(model.get_parameter(name).double(), weight, rtol=1e-5, atol=1e-6)
