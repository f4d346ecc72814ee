import torch

from training.evaluation.metrics.retrieval import pair_scores


def test_any_of_the_own_captions_will_do():
    images = torch.eye(3)
    texts = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.1, 0.0], [0.0, 1.0, 0.1], [0.2, 0.0, 1.0]])
    owners = torch.tensor([0, 0, 1, 2])
    own = torch.arange(3)
    assert pair_scores(images, own, texts, owners, [1, 9])["recall@1"].tolist() == [1, 1, 0]  # text 0 is nearest to 2
    assert pair_scores(texts, owners, images, own, [1, 9])["recall@1"].tolist() == [0, 1, 1, 1]
    assert pair_scores(texts, owners, images, own, [1, 9])["recall@9"].tolist() == [1, 1, 1, 1]
