import numpy as np
import pyarrow
import pytest
import torch

from training.extraction.columns import (
    Storage,
    column_names,
    dense_parts,
    features_of,
    quantized,
    reduced,
    restored,
    table_of,
)
from training.extraction.reduction import Reduction


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
    from datasets import Value

    row = reduced(ROW, Reduction())
    types = features_of(row, Storage("int8"), {"label": Value("int64")})
    assert list(types)[:4] == ["id", "label", "summary", "summary_scale"]
    assert types["summary"].length == 4
    with pytest.raises(ValueError, match="`keep` must name columns without a name of ours, got 'summary'"):
        features_of(row, Storage(), {"summary": Value("string")})
    with pytest.raises(ValueError, match="got 'id'"):
        features_of(row, Storage(), {"id": Value("string")})


def test_numbers_that_are_too_large_are_refused():
    row = reduced(ROW | {"summary": torch.full((4,), 1e6)}, Reduction())
    kept = pyarrow.table({"label": [1]})
    for dtype in ("float16", "int8"):
        storage = Storage(dtype)
        from datasets import Value

        features = features_of(row, storage, {"label": Value("int64")})
        if dtype == "int8":
            assert table_of(["x"], kept, [row], storage, features).num_rows == 1
        else:
            with pytest.raises(ValueError, match="`dtype` must hold numbers as large as those of summary"):
                table_of(["x"], kept, [row], storage, features)
