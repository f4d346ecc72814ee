import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from training.distillation.optimizers import build_optimizer, parameter_groups
from training.recipe import OptimizerRecipe


@pytest.fixture(scope="module")
def model() -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1, adaptors=[adaptor]))


def step_that_moves_everything(model: RadioModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Take a step along random gradients, see that each parameter moves, and return what they were before."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    model.zero_grad()
    assert all((parameter != before[name]).any() for name, parameter in model.named_parameters())
    return before


def test_every_parameter_is_in_one_group_and_only_matrices_decay(model: RadioModel) -> None:
    decayed, undecayed = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, undecayed)]
    assert groups[0] | groups[1] == set(names.values())
    assert not groups[0] & groups[1]
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0)
    generator = "radio_model.model.patch_generator"
    assert {f"{generator}.pos_embed", f"{generator}.cls_token.token"} <= groups[1]
    assert {f"{generator}.embedder.weight", "radio_model.adaptors.t.feat_mlp.fc1.weight"} <= groups[0]
    assert not any(name.endswith("bias") for name in groups[0])


def test_unknown_optimizer_is_refused(model: RadioModel) -> None:
    with pytest.raises(
        ValueError,
        match=r"`name` must be one of \['adamw', .*'muon'\], got 'adam'\. Did you mean 'adamw'\?",
    ):
        build_optimizer(model, OptimizerRecipe(name="adam"))


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(model: RadioModel) -> None:
    recipe = OptimizerRecipe(name="muon", weight_decay=0.1, fallback_lr_scale=0.5)
    optimizer = build_optimizer(model, recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, *rest = [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]
    blocks = "radio_model.model.blocks.0"
    assert matrices == {f"{blocks}.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert matrices.union(*rest) == set(names.values())
    assert all(group["use_fallback"] for group in optimizer.param_groups[1:])
    step_that_moves_everything(model, optimizer)


def test_lamb_moves_everything_and_leaves_clipping_to_the_trainer(model: RadioModel) -> None:
    optimizer = build_optimizer(model, OptimizerRecipe(name="lamb", learning_rate=1e-2, weight_decay=0.02))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0]
    assert [group["max_grad_norm"] for group in optimizer.param_groups] == [None, None]
    before = step_that_moves_everything(model, optimizer)
    # The trust ratio: a matrix moves by the learning rate times its own norm.
    name = "radio_model.model.blocks.0.mlp.fc1.weight"
    move = (model.get_parameter(name) - before[name]).norm()
    assert move.item() == pytest.approx(1e-2 * before[name].norm().item(), rel=0.01)
