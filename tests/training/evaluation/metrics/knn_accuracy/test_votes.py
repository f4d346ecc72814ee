import pytest
import torch

from training.evaluation.metrics.knn_accuracy.votes import knn_accuracy, knn_predictions


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
