import pytest
import torch

from training.evaluation.metrics.zero_shot import centered, conse_embeddings, zero_shot_accuracy


def test_conse_is_the_probability_weighted_mean_of_the_likeliest_names():
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    embedding = conse_embeddings(logits, torch.eye(3), top_k=2)
    expected = torch.tensor([[0.6, 0.3, 0.0]])
    torch.testing.assert_close(embedding, expected / expected.norm())


def test_accuracy_takes_the_nearest_label():
    images = torch.tensor([[1.0, 0.1], [0.2, 5.0], [3.0, 0.0]])
    assert zero_shot_accuracy(images, torch.eye(2), torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


def test_centering_removes_what_all_prompts_share():
    shared = torch.tensor([100.0, 100.0])
    embeddings = shared + torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    apart = centered(embeddings, embeddings.mean(0))
    assert (apart[0] @ apart[1]).item() == pytest.approx(-1.0)
