import pytest
import torch
from timm.optim.muon import zeropower_via_newtonschulz

from training.distillation.optimizers import newton_schulz
from training.distillation.optimizers.newton_schulz import COEFFICIENTS, orthogonalize


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
    sizes, iterate = [], newton_schulz._iterate

    def recorded(stack: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        sizes.append(tuple(stack.shape))
        return iterate(stack, dtype)

    monkeypatch.setattr(newton_schulz, "_iterate", recorded)
    whole = orthogonalize(matrices(), torch.float32)
    assert sizes == [(2, 8, 8), (3, 8, 16), (1, 4, 8)]
    sizes.clear()
    monkeypatch.setattr(newton_schulz, "MAX_BATCH_NUMBERS", 2 * 8 * 16)
    split = orthogonalize(matrices(), torch.float32)
    assert sizes == [(2, 8, 8), (2, 8, 16), (1, 8, 16), (1, 4, 8)]
    for first, second in zip(whole, split, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_a_matrix_of_zeros_stays_so() -> None:
    (result,) = orthogonalize([torch.zeros(3, 4)], torch.float32)
    assert torch.equal(result, torch.zeros(3, 4))
