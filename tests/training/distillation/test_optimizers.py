"""Optimizers, their groups of parameters and schedules."""

import copy

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.training.distillation import optimizers
from modeling_radio.training.distillation.optimizers import (
    MOMENTUM,
    OPTIMIZERS,
    Lamb,
    Muon,
    build_optimizer,
    orthogonalize,
    parameter_groups,
)
from modeling_radio.training.recipes.recipe import OptimizerRecipe
from modeling_radio.training.student.regularizers import SCALE_SUFFIX, add_spectral_scales


def build_model(**fields) -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8, "feature_head": "attention"}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1, adaptors=[adaptor], **fields))


def options_by_name(model: RadioModel) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1)
    grouped = [(names[id(parameter)], group) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(names), "every parameter is in one group"
    return dict(grouped)


@pytest.mark.parametrize("is_reparametrized", [False, True])
@pytest.mark.parametrize(
    ("use_swiglu_ffn", "expected"),
    [
        (False, {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1}),
        (True, {"attn.qkv": 3, "attn.proj": 1, "mlp.w12": 2, "mlp.w3": 1}),
    ],
)
def test_matrices_are_those_of_the_trunks_blocks(
    use_swiglu_ffn: bool, expected: dict[str, int], is_reparametrized: bool
) -> None:
    model = build_model(use_swiglu_ffn=use_swiglu_ffn)
    if is_reparametrized:
        add_spectral_scales(model)
    ending = "parametrizations.weight.original" if is_reparametrized else "weight"
    counts = {name: group["num_matrices"] for name, group in options_by_name(model).items() if group["num_matrices"]}
    assert counts == {f"radio_model.model.blocks.0.{name}.{ending}": count for name, count in expected.items()}


def test_spectral_scales_decay_without_a_trust_ratio() -> None:
    model = build_model()
    add_spectral_scales(model)
    options = options_by_name(model)
    scales = [group for name, group in options.items() if name.endswith(SCALE_SUFFIX)]
    assert len(scales) == 4
    assert all(group["weight_decay"] == 0.1 and not group["use_trust_ratio"] for group in scales)
    others = [group for name, group in options.items() if not name.endswith(SCALE_SUFFIX)]
    assert all(group["use_trust_ratio"] is (group["weight_decay"] > 0) for group in others)
    assert all(isinstance(parameter, torch.Tensor) for group in others for parameter in group["params"])


SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6}
LAMB_SHAPES = [(6, 5), (3, 4), (7,), (2, 2)]


def build_lamb(lamb: type, decay: float, **options) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in LAMB_SHAPES]
    return parameters, lamb([{"params": parameters, "weight_decay": decay, **options}], **SETTINGS)


def random_step(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number + 1)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


class TimmLamb(timm.optim.Lamb):
    def __init__(self, groups: list[dict], **settings) -> None:
        super().__init__(groups, max_grad_norm=None, **settings)


@pytest.mark.parametrize(("decay", "use_trust_ratio"), [(0.1, True), (0.0, False)])
def test_it_is_timms(decay: float, use_trust_ratio: bool) -> None:
    ours, our_optimizer = build_lamb(Lamb, decay, use_trust_ratio=use_trust_ratio)
    theirs, their_optimizer = build_lamb(TimmLamb, decay)
    for number in range(10):
        random_step(ours, our_optimizer, number)
        random_step(theirs, their_optimizer, number)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-3, 5.0])
def test_without_a_trust_ratio_the_size_of_a_value_does_not_matter(value: float) -> None:
    """As for spectral scales, which would stand still near zero and shrink elsewhere."""
    scale = nn.Parameter(torch.full((1, 1), value))
    optimizer = Lamb([{"params": [scale], "weight_decay": 0.02, "use_trust_ratio": False}], **SETTINGS)
    scale.grad = torch.full((1, 1), 0.3)
    optimizer.step()
    assert scale.item() == pytest.approx(value - 1e-2 * (1 + 0.02 * value), rel=1e-5)


STACKS = {3: (24, 8), 2: (32, 8), 1: (8, 16)}


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build_muon(dtype: torch.dtype, weight_decay: float) -> tuple[dict[int, nn.Parameter], Muon]:
    weights = {count: nn.Parameter(numbers(shape, count)) for count, shape in STACKS.items()}
    groups = [{"params": [w], "num_matrices": n, "weight_decay": weight_decay} for n, w in weights.items()]
    return weights, Muon(groups, fallback_lr_scale=0.5, dtype=dtype, **SETTINGS)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-3)])
def test_stacked_matrices_move_as_timms_do_apart(dtype: torch.dtype, bound: float) -> None:
    weights, optimizer = build_muon(dtype, 0.1)
    apart = {n: [nn.Parameter(part.detach().clone()) for part in weight.chunk(n)] for n, weight in weights.items()}
    theirs = timm.optim.Muon(
        [part for parts in apart.values() for part in parts],
        lr=SETTINGS["lr"],
        weight_decay=0.1,
        momentum=MOMENTUM,
        nesterov=True,
    )
    start = {n: weight.detach().clone() for n, weight in weights.items()}
    for number in range(5):
        for n, weight in weights.items():
            weight.grad = numbers(weight.shape, 10 * number + n)
            for part, gradient in zip(apart[n], weight.grad.chunk(n), strict=True):
                part.grad = gradient
        optimizer.step()
        theirs.step()
    for n, weight in weights.items():
        moved = (weight - start[n]).abs().max()
        error = (weight - torch.cat(apart[n])).abs().max()
        assert moved > 0.01
        assert error < bound, (error, moved)  # timm computes in bfloat16


def test_query_key_and_value_do_not_mix() -> None:
    """A gradient of the queries moves the queries alone, each of whose directions counts as much as the others."""
    weights, optimizer = build_muon(torch.float32, 0.0)
    before = {n: weight.detach().clone() for n, weight in weights.items()}
    weights[3].grad = torch.zeros(24, 8)
    weights[3].grad[:8] = numbers((8, 8), 0)
    optimizer.step()
    query, key, value = (weights[3] - before[3]).detach().chunk(3)
    assert torch.equal(key, torch.zeros(8, 8))
    assert torch.equal(value, torch.zeros(8, 8))
    assert query.square().mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.2)
    assert torch.equal(weights[2], before[2])  # no gradient


def test_the_rest_moves_as_by_timms_nadamw() -> None:
    ours, theirs = (nn.Parameter(numbers((5, 3), 0)) for _ in range(2))
    optimizer = Muon(
        [{"params": [ours], "num_matrices": 0, "weight_decay": 0.1}],
        fallback_lr_scale=0.5,
        dtype=torch.float32,
        **SETTINGS,
    )
    reference = timm.optim.NAdamW([theirs], weight_decay=0.1, **{**SETTINGS, "lr": 0.5e-2})
    for number in range(10):
        ours.grad, theirs.grad = numbers((5, 3), number), numbers((5, 3), number)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


SHAPES = [(8, 8), (16, 8), (8, 8), (8, 16), (8, 16), (4, 8)]


def matrices() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * 10.0**power for power, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_nearly_orthogonal_and_keep_the_singular_vectors(dtype: torch.dtype) -> None:
    for matrix, result in zip(matrices(), orthogonalize(matrices(), dtype), strict=True):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        seen = left.mT @ result.float() @ right.mT
        is_large = values > 0.1 * values[0]
        assert ((seen.diagonal() > 0.7) & (seen.diagonal() < 1.2))[is_large].all()
        assert (seen - seen.diagonal().diag()).abs().max() < 0.05


def test_equal_shapes_share_a_batch_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, iterate = [], optimizers._iterate

    def recorded(stack: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        sizes.append(tuple(stack.shape))
        return iterate(stack, dtype)

    monkeypatch.setattr(optimizers, "_iterate", recorded)
    whole = orthogonalize(matrices(), torch.float32)
    assert sizes == [(2, 8, 8), (3, 8, 16), (1, 4, 8)]
    sizes.clear()
    monkeypatch.setattr(optimizers, "MAX_BATCH_NUMBERS", 2 * 8 * 16)
    split = orthogonalize(matrices(), torch.float32)
    assert sizes == [(2, 8, 8), (2, 8, 16), (1, 8, 16), (1, 4, 8)]
    for first, second in zip(whole, split, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


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
