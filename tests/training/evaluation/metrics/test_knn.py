import resource

import pytest
import torch
from torch.nn import functional as F

from training.evaluation.metrics import knn
from training.evaluation.metrics.knn import knn_accuracy, knn_predictions, nearest_neighbors, retrieval_scores


def test_nearest_direction_wins_whatever_the_length():
    gallery = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    queries = torch.tensor([[0.3, 0.1], [1.0, 40.0]])
    assert knn_predictions(queries, gallery, torch.tensor([1, 0]), k=1).tolist() == [1, 0]


def test_votes_are_weighted_by_exponentiated_similarity():
    gallery = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])  # cosines 1, .6, .6 with the query
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    # exp(1/.07) outweighs 2 exp(.6/.07); at a high temperature the majority wins
    assert knn_predictions(query, gallery, labels, k=3).item() == 0
    assert knn_predictions(query, gallery, labels, k=3, temperature=10.0).item() == 1


def test_only_k_neighbors_vote():
    gallery = torch.tensor([[1.0, 0.05], [1.0, 0.3], [1.0, 0.31], [1.0, 0.32]])
    labels = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_predictions(query, gallery, labels, k=1).item() == 0
    assert knn_predictions(query, gallery, labels, k=4).item() == 1


def test_accuracy_counts_the_right_answers():
    gallery, labels = torch.eye(4), torch.arange(4)
    assert knn_accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]), gallery, labels, k=1) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 5}, "`k` must be between 1 and the gallery's 4 images, got 5"),
        ({"k": 0}, "got 0"),
        ({"queries": torch.ones(1, 3)}, "`queries` must be as wide as the gallery, 4, got 3"),
        ({"gallery_labels": torch.arange(3)}, "`gallery_labels` must have the gallery's 4 rows, got 3"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"queries": torch.eye(4), "gallery": torch.eye(4), "gallery_labels": torch.arange(4), "k": 1}
    with pytest.raises(ValueError, match=message):
        knn_predictions(**(arguments | changes))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(knn, "QUERIES", 7)
    monkeypatch.setattr(knn, "GALLERY", 11)


@pytest.mark.parametrize(("leave_one_out", "is_grouped"), [(False, False), (True, False), (True, True)])
def test_blocks_change_nothing(leave_one_out, is_grouped, small_blocks):
    gallery = torch.randn(50, 8)
    queries = gallery if leave_one_out else torch.randn(30, 8)
    similarity = F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T
    groups = torch.arange(50) % 7 if is_grouped else None
    if leave_one_out:
        sources = torch.arange(50) if groups is None else groups
        similarity[sources[:, None] == sources] = -torch.inf
    expected = similarity.topk(5)
    found = nearest_neighbors(queries, gallery, 5, leave_one_out=leave_one_out, groups=groups)
    assert torch.equal(found.index, expected.indices)
    torch.testing.assert_close(found.similarity, expected.values)


def test_no_image_is_its_own_neighbor():
    gallery = torch.randn(4, 3)
    assert not (nearest_neighbors(gallery, gallery, 3, leave_one_out=True).index == torch.arange(4)[:, None]).any()
    with pytest.raises(ValueError, match="`k` must be between 1 and the gallery's 3 images, got 4"):
        nearest_neighbors(gallery, gallery, 4, leave_one_out=True)
    with pytest.raises(ValueError, match="`k` must be between 1 and the gallery's 1 images, got 2"):
        nearest_neighbors(gallery, gallery, 2, leave_one_out=True, groups=torch.tensor([0, 0, 0, 1]))


def _measured(num_rows: int, num_queries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(num_rows, 16, generator=generator)
    labels = torch.randint(0, 100, (num_rows,), generator=generator)
    queries, truth = gallery[:num_queries], labels[:num_queries]
    assert (knn_predictions(queries, gallery, labels, k=20, temperature=1e-3) == truth).float().mean() > 0.9
    assert retrieval_scores(queries, truth, gallery, labels)["hit rate@1"].min() == 1


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_memory_does_not_grow_with_queries_times_gallery(small_blocks, monkeypatch):
    """Whatever the number of queries, no tensor of similarities is larger than one block."""
    sizes = []
    monkeypatch.setattr(knn, "MAX_SIMILARITIES", 7 * 200)
    multiply = torch.Tensor.__matmul__

    def noted(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product = multiply(one, other)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    rows, labels = torch.randn(200, 4), torch.arange(200) % 3
    nearest_neighbors(rows, rows, 3)
    assert max(sizes) == 7 * 11
    sizes.clear()
    retrieval_scores(rows, labels, rows, labels)
    assert max(sizes) == 7 * 200


@pytest.mark.slow
def test_a_hundred_thousand_rows():
    _measured(1000, 100)
    before = _peak_mib()
    _measured(100_000, 4_000)
    # Queries times gallery would be 1.6 GB in float32; vectors are 6 MB, and a block with sorted copies 300 MB.
    assert _peak_mib() - before < 1000
