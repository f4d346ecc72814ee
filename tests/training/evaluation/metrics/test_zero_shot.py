import pytest
import torch

from training.evaluation.metrics.zero_shot import centered, conse_embeddings, zero_shot_predictions


def test_conse_is_the_probability_weighted_mean_of_the_likeliest_names():
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    embedding = conse_embeddings(logits, torch.eye(3), top_k=2)
    expected = torch.tensor([[0.6, 0.3, 0.0]])
    torch.testing.assert_close(embedding, expected / expected.norm())


def test_the_label_is_the_one_at_the_smallest_angle():
    images = torch.tensor([[1.0, 0.1], [0.2, 5.0], [3.0, 0.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 100.0]])  # however long
    assert zero_shot_predictions(images, labels).tolist() == [0, 1, 0]


def test_centering_removes_what_all_prompts_share():
    shared = torch.tensor([100.0, 100.0])
    embeddings = shared + torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    apart = centered(embeddings, embeddings.mean(0))
    assert (apart[0] @ apart[1]).item() == pytest.approx(-1.0)
