import numpy as np
import pytest
import torch

from training.extraction.columns import Moments, Reduction, fit_bases, load_bases, save_bases


def test_pooling_takes_means_and_what_is_left_at_the_edges():
    tokens = torch.arange(6.0)[:, None]  # 2 rows of 3 patches
    pooled, grid = Reduction(2).pooled(tokens, (2, 3))
    assert grid == (1, 2)
    torch.testing.assert_close(pooled, torch.tensor([[2.0], [3.5]]))  # of 0, 1, 3, 4 and of 2, 5
    same, grid = Reduction(1).pooled(tokens, (2, 3))
    assert torch.equal(same, tokens)


def test_components_are_those_of_a_singular_value_decomposition():
    tokens = torch.randn(50, 6) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.2, 0.1]) + 7
    moments = Moments()
    for part in tokens.split(20):
        moments.add(part)
    basis = moments.basis(3)
    _, values, rows = np.linalg.svd((tokens - tokens.mean(0)).double().numpy(), full_matrices=False)
    np.testing.assert_allclose(np.abs((basis.components.numpy() * rows[:3]).sum(1)), 1, atol=1e-5)
    np.testing.assert_allclose(basis.explained_variance, values[:3] ** 2 / 50, rtol=1e-4)
    with pytest.raises(ValueError, match="`pca` must be at most the features' 6 dimensions, got 7"):
        moments.basis(7)


def test_components_need_more_patches_than_they_are():
    moments = Moments()
    moments.add(torch.randn(3, 6))
    assert (moments.basis(2).explained_variance > 0.01).all()
    with pytest.raises(ValueError, match="`pca` must be less than the 3 patches of the images, got 3"):
        moments.basis(3)


def test_bases_of_all_columns_are_kept(tmp_path):
    rows = [{"features": (torch.randn(4, 5), (2, 2)), "a/features": (torch.randn(4, 3), (2, 2))} for _ in range(9)]
    bases = fit_bases(rows, 1, 2)
    save_bases(tmp_path / "pca.safetensors", bases)
    loaded = load_bases(tmp_path / "pca.safetensors")
    assert loaded.keys() == {"features", "a/features"}
    assert torch.equal(loaded["a/features"].components, bases["a/features"].components)
    reduction = Reduction(1, loaded)
    assert reduction.apply("a/features", torch.randn(4, 3), (2, 2))[0].shape == (4, 2)
