"""Muon beside timm's on matrices that are not stacked, and NAdamW beside timm's."""

import pytest
import timm.optim
import torch
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor, nn

from training.distillation import optimizers
from training.distillation.optimizers import COEFFICIENTS, MOMENTUM, Muon, orthogonalize


SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6}
STACKS = {3: (24, 8), 2: (32, 8), 1: (8, 16)}


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(dtype: torch.dtype, weight_decay: float) -> tuple[dict[int, nn.Parameter], Muon]:
    weights = {count: nn.Parameter(numbers(shape, count)) for count, shape in STACKS.items()}
    groups = [{"params": [w], "num_matrices": n, "weight_decay": weight_decay} for n, w in weights.items()]
    return weights, Muon(groups, fallback_lr_scale=0.5, dtype=dtype, **SETTINGS)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-3)])
def test_stacked_matrices_move_as_timms_do_apart(dtype: torch.dtype, bound: float) -> None:
    weights, optimizer = build(dtype, 0.1)
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
    weights, optimizer = build(torch.float32, 0.0)
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


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_batches_give_what_single_matrices_give(dtype: torch.dtype, bound: float) -> None:
    batched = orthogonalize(matrices(), dtype)
    for matrix, result in zip(matrices(), batched, strict=True):
        assert result.shape == matrix.shape
        assert result.dtype == dtype
        single = zeropower_via_newtonschulz(matrix, len(COEFFICIENTS), list(COEFFICIENTS), dtype=dtype)
        assert (result - single).abs().max() < bound


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


def test_a_matrix_of_zeros_stays_so() -> None:
    (result,) = orthogonalize([torch.zeros(3, 4)], torch.float32)
    assert torch.equal(result, torch.zeros(3, 4))
