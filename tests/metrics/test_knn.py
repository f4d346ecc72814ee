"""Votes and rankings of neighbors, beside torch's and torchmetrics' on whole matrices."""

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalRecall

from modeling_radio.metrics import knn
from modeling_radio.metrics.knn import knn_predictions, nearest_neighbors, retrieval_scores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 5}, "`k` .* 4 images, got 5"),
        ({"k": 0}, "`k` .* got 0"),
        ({"k": 4, "leave_one_out": True}, "`k` .* 3 images, got 4"),
        ({"k": 2, "leave_one_out": True, "groups": torch.tensor([0, 0, 0, 1])}, "`k` .* 1 images, got 2"),
        ({"gallery_labels": torch.arange(3)}, "`gallery_labels`"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"queries": torch.eye(4), "gallery": torch.eye(4), "gallery_labels": torch.arange(4), "k": 1}
    with pytest.raises(ValueError, match=message):
        knn_predictions(**(arguments | changes))


MODES = pytest.mark.parametrize(("leave_one_out", "is_grouped"), [(False, False), (True, False), (True, True)])


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(knn, "QUERIES", 7)
    monkeypatch.setattr(knn, "GALLERY", 11)
    monkeypatch.setattr(knn, "MAX_SIMILARITIES", 7 * 200)


@MODES
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


def test_no_matrix_is_larger_than_a_block(small_blocks, monkeypatch):
    sizes = []
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


@MODES
def test_retrieval_is_that_of_torchmetrics(leave_one_out, is_grouped):
    gallery, labels = torch.randn(60, 8), torch.randint(0, 5, (60,))
    queries, truth = (gallery, labels) if leave_one_out else (torch.randn(40, 8), torch.randint(0, 5, (40,)))
    similarity = F.cosine_similarity(queries[:, None], gallery[None], dim=2)
    groups = torch.randint(0, 12, (60,)) if is_grouped else None
    sources = torch.arange(60) if groups is None else groups
    kept = sources[:, None] != sources if leave_one_out else torch.ones(40, 60, dtype=torch.bool)
    relevant = truth[:, None] == labels
    index = torch.arange(len(queries))[:, None].expand_as(relevant)
    scores = retrieval_scores(queries, truth, gallery, labels, ranks=(1, 7), leave_one_out=leave_one_out, groups=groups)
    expected = {
        "mAP": RetrievalMAP(),
        "hit rate@7": RetrievalHitRate(top_k=7),
        "recall@7": RetrievalRecall(top_k=7),
        "hit rate@1": RetrievalHitRate(top_k=1),
    }
    for name, metric in expected.items():
        value = metric(1 + similarity[kept], relevant[kept], index[kept])  # it takes scores above 0 only
        assert scores[name].mean().item() == pytest.approx(value.item(), abs=1e-6)


def test_queries_without_a_relevant_image_have_no_score():
    rows, labels = torch.eye(3), torch.tensor([0, 0, 1])
    alone = [False, False, True]
    for groups, is_without in ((None, alone), (torch.tensor([0, 1, 1]), alone), (torch.tensor([0, 0, 1]), [True] * 3)):
        scores = retrieval_scores(rows, labels, rows, labels, leave_one_out=True, groups=groups)
        assert all(values.isnan().tolist() == is_without for values in scores.values())
