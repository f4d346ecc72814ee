"""Reduced, quantized and refused columns."""

import numpy as np
import pyarrow
import pytest
import torch
from datasets import Value

from modeling_radio.core.checked_tensors import DamagedFileError
from modeling_radio.extraction import columns
from modeling_radio.extraction.columns import (
    Storage,
    TokenMoments,
    features_of,
    fit_bases,
    load_bases,
    pooled,
    quantized,
    restored,
    save_bases,
    table_of,
)


ROW = {
    "mean_features": torch.randn(4),
    "b/features": torch.randn(6, 3),
    "b/grids": torch.tensor([2, 3]),
    "summary": torch.randn(4),
    "b/mean_features": torch.randn(3),
}
KEPT = pyarrow.table({"label": [1]})


def table(storage, kept=KEPT, count=1, **changed):
    row = storage.reduce(ROW | changed)
    features = features_of(row, storage, {name: Value("int64") for name in kept.column_names})
    return table_of(["x"] * count, kept, [row] * count, storage, features)


@pytest.mark.parametrize("name", ["summary", "id", "features", "grid", "c/summary", "mean_features_scale"])
def test_copied_columns_have_no_name_of_features(name):
    with pytest.raises(ValueError, match=f"`keep` .*'{name}'"):
        features_of(Storage().reduce(ROW), Storage(), {name: Value("string")})


def test_int8_is_restored_by_its_scales():
    vectors = torch.randn(5, 64) * torch.tensor([0.0, 1e-6, 1.0, 30.0, 1e6])[:, None]
    numbers, scales = quantized(vectors)
    assert numbers.dtype == torch.int8
    back = restored(numbers.numpy(), scales.numpy())
    assert (np.abs(back - vectors.numpy()) <= 0.00394 * vectors.abs().amax(1, keepdim=True).numpy()).all()
    assert not back[0].any()


@pytest.mark.parametrize(
    ("dtype", "value", "name"),
    [
        ("float16", 1e6, "vector_dtype"),
        ("float32", float("nan"), "checkpoint"),
        ("float16", float("inf"), "checkpoint"),
        ("int8", float("nan"), "checkpoint"),
    ],
)
def test_numbers_that_cannot_be_stored_are_refused(dtype, value, name):
    with pytest.raises(ValueError, match=f"`{name}` .* summary"):
        table(Storage(dtype), summary=torch.tensor([0.0, value, 1.0, 2.0]))
    assert table(Storage("int8"), summary=torch.full((4,), 1e6)).num_rows == 1


def test_batches_beyond_arrows_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(columns, "MAX_NUMBERS", 20)
    assert table(Storage()).num_rows == 1
    with pytest.raises(ValueError, match="`batch_size`"):
        table(Storage(), pyarrow.table({"label": [1, 2]}), 2)


def test_pooling_averages_smaller_squares_at_the_edges():
    tokens = torch.arange(6.0)[:, None]  # 2 rows of 3 patches
    means, grid = pooled(tokens, (2, 3), 2)
    assert grid == (1, 2)
    torch.testing.assert_close(means, torch.tensor([[2.0], [3.5]]))  # of 0, 1, 3, 4 and of 2, 5
    assert torch.equal(pooled(tokens, (2, 3), 1)[0], tokens)


def test_components_are_those_of_a_singular_value_decomposition():
    tokens = torch.randn(50, 6) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.2, 0.1]) + 7
    moments = TokenMoments()
    for part in tokens.split(20):
        moments.add(part)
    basis = moments.basis(3)
    _, values, rows = np.linalg.svd((tokens - tokens.mean(0)).double().numpy(), full_matrices=False)
    np.testing.assert_allclose(np.abs((basis.components.numpy() * rows[:3]).sum(1)), 1, atol=1e-5)
    np.testing.assert_allclose(basis.explained_variance, values[:3] ** 2 / 50, rtol=1e-4)
    with pytest.raises(ValueError, match="6 dimensions"):
        moments.basis(7)
    few = TokenMoments()
    few.add(tokens[:3])
    assert (few.basis(2).explained_variance > 0.01).all()
    with pytest.raises(ValueError, match="3 patches"):
        few.basis(3)


def test_bases_of_all_columns_are_kept(tmp_path):
    grid = torch.tensor([2, 2])
    rows = [
        {"features": torch.randn(4, 5), "grids": grid, "a/features": torch.randn(4, 3), "a/grids": grid}
        for _ in range(9)
    ]
    bases = fit_bases(rows, 1, 2)
    save_bases(tmp_path / "pca.safetensors", bases)
    loaded = load_bases(tmp_path / "pca.safetensors")
    assert loaded.keys() == {"features", "a/features"}
    assert torch.equal(loaded["a/features"].components, bases["a/features"].components)
    assert Storage(bases=loaded).reduce(rows[0])["a/features"].shape == (4, 2)
    content = bytearray((tmp_path / "pca.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "pca.safetensors").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"pca\.safetensors"):
        load_bases(tmp_path / "pca.safetensors")
