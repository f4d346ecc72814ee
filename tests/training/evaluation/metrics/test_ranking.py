import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalRecall

from training.evaluation.metrics.knn import retrieval_scores


@pytest.mark.parametrize(("leave_one_out", "is_grouped"), [(False, False), (True, False), (True, True)])
def test_scores_are_those_of_torchmetrics(leave_one_out, is_grouped):
    gallery, labels = torch.randn(60, 8), torch.randint(0, 5, (60,))
    queries, truth = (gallery, labels) if leave_one_out else (torch.randn(40, 8), torch.randint(0, 5, (40,)))
    similarity = torch.nn.functional.cosine_similarity(queries[:, None], gallery[None], dim=2)
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
