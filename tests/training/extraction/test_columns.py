import numpy as np
import pyarrow
import pytest
import torch
from datasets import Value

from training.extraction import columns
from training.extraction.columns import (
    Reduction,
    Storage,
    column_names,
    dense_parts,
    features_of,
    quantized,
    reduced,
    restored,
    table_of,
)


ROW = {
    "mean_features": torch.randn(4),
    "b/features": torch.randn(6, 3),
    "b/grids": torch.tensor([2, 3]),
    "summary": torch.randn(4),
    "b/mean_features": torch.randn(3),
}


def test_columns_stand_in_one_order():
    assert column_names(ROW) == ["summary", "mean_features", "b/mean_features", "b/features"]
    assert list(dense_parts(ROW)) == ["b/features"]
    assert column_names(reduced(ROW, Reduction())) == column_names(ROW)


def test_int8_comes_back_by_its_scales():
    vectors = torch.randn(5, 64) * torch.tensor([0.0, 1e-6, 1.0, 30.0, 1e6])[:, None]
    numbers, scales = quantized(vectors)
    assert numbers.dtype == torch.int8
    back = restored(numbers.numpy(), scales.numpy())
    assert (np.abs(back - vectors.numpy()) <= 0.00394 * vectors.abs().amax(1, keepdim=True).numpy()).all()
    assert not back[0].any()


def test_types_name_lengths_and_copied_columns():
    row = reduced(ROW, Reduction())
    types = features_of(row, Storage("int8"), {"label": Value("int64")})
    assert list(types)[:4] == ["id", "label", "summary", "summary_scale"]
    assert types["summary"].length == 4
    with pytest.raises(ValueError, match="`keep` must name columns without a name of ours, got 'summary'"):
        features_of(row, Storage(), {"summary": Value("string")})
    for name in ("id", "features", "grid", "c/summary", "mean_features_scale"):  # also where there are none of ours
        with pytest.raises(ValueError, match=f"got '{name}'"):
            features_of(row, Storage(), {name: Value("string")})


def test_numbers_that_are_too_large_are_refused():
    row = reduced(ROW | {"summary": torch.full((4,), 1e6)}, Reduction())
    kept = pyarrow.table({"label": [1]})
    for dtype in ("float16", "int8"):
        storage = Storage(dtype)
        features = features_of(row, storage, {"label": Value("int64")})
        if dtype == "int8":
            assert table_of(["x"], kept, [row], storage, features).num_rows == 1
        else:
            with pytest.raises(ValueError, match="`dtype` must hold numbers as large as those of summary"):
                table_of(["x"], kept, [row], storage, features)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_answers_that_are_no_numbers_are_refused(dtype):
    row, storage = reduced(ROW | {"summary": torch.tensor([0.0, float("nan"), 1.0, 2.0])}, Reduction()), Storage(dtype)
    with pytest.raises(ValueError, match="`checkpoint` must answer with finite numbers, got others in summary"):
        table_of(["x"], pyarrow.table({}), [row], storage, features_of(row, storage, {}))


def test_batches_beyond_arrows_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(columns, "MAX_NUMBERS", 20)
    row, kept = reduced(ROW, Reduction()), pyarrow.table({"label": [1, 2]})
    for is_nested in (False, True):
        storage = Storage(is_nested=is_nested)
        features = features_of(row, storage, {"label": Value("int64")})
        assert table_of(["x"], kept.slice(0, 1), [row], storage, features).num_rows == 1
        with pytest.raises(ValueError, match=r"`batch_size` must leave at most 20 numbers .* got 36\. Halve it"):
            table_of(["x", "y"], kept, [row, row], storage, features)
