import numpy as np
import pytest

from training.extraction.search import FeatureFolder, build_indexes, index_path, nearest, summary_columns


@pytest.fixture
def features(extract, tmp_path):
    """Return a function that makes a data set of two splits."""

    def make(**values):
        extract(adaptors=["teacher_a"], **values)
        return FeatureFolder(tmp_path / "out")

    return make


def vectors_of(data, column):
    """All vectors of a column, of length 1."""
    from pyarrow.parquet import read_table

    rows = np.concatenate([np.stack(read_table(data.folder / each.path)[column].to_numpy()) for each in data.shards])
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_nearest_row_is_the_vector_itself(features, dtype):
    data = features(dtype=dtype)
    vectors = vectors_of(data, "summary")
    cosines = vectors @ vectors[7]
    found = nearest(data.folder, data.shards, "summary", vectors[7], 4)
    assert found[0][1:] == ("train", 7)
    np.testing.assert_allclose(
        [cosine for cosine, _, _ in found], cosines[[number for _, _, number in found]], atol=1e-6
    )
    np.testing.assert_allclose([cosine for cosine, _, _ in found], np.sort(cosines)[::-1][:4], atol=1e-5)
    assert len(nearest(data.folder, data.shards, "summary", vectors[7], 99)) == 23


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_an_index_finds_the_same_as_looking_at_all(features, kind, dtype):
    pytest.importorskip("faiss")
    data = features(dtype=dtype)
    queries = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    by_all = [nearest(data.folder, data.shards, "summary", query, 5) for query in queries]
    build_indexes(data.folder, data.shards, ["summary", "teacher_a/summary"], kind)
    assert (data.folder / index_path("train", "teacher_a/summary")).is_file()
    for query, expected in zip(queries, by_all, strict=True):
        found = nearest(data.folder, data.shards, "summary", query, 5)
        assert [each[1:] for each in found] == [each[1:] for each in expected]
        np.testing.assert_allclose([each[0] for each in found], [each[0] for each in expected], atol=1e-5)
    assert len(nearest(data.folder, data.shards, "summary", queries[0], 99)) == 23


def test_indexes_are_what_is_asked(features, monkeypatch):
    faiss = pytest.importorskip("faiss")
    data = features()
    build_indexes(data.folder, data.shards, ["summary"], "hnsw")
    index = faiss.read_index(str(data.folder / "index" / "train-summary.faiss"))
    assert isinstance(index, faiss.IndexHNSWFlat)
    assert index.ntotal == 23
    assert not list((data.folder / "index").glob(".partial-*"))


def test_a_damaged_index_is_said_in_one_line(features):
    pytest.importorskip("faiss")
    data = features()
    build_indexes(data.folder, data.shards, ["summary"], "flat")
    path = data.folder / index_path("train", "summary")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"train-summary\.faiss is no index that faiss reads. Remove it, or write it"):
        nearest(data.folder, data.shards, "summary", np.ones(32, np.float32), 5)


def test_summaries_are_told_from_other_columns():
    names = ["id", "summary", "summary_scale", "mean_features", "a/summary", "a/features"]
    assert summary_columns(names) == ["summary", "a/summary"]
