"""Evidence of batches joins to that of a set, and rankings say what is right down to each answer."""

import weakref

import torch

from training.finetuning.tasks.base import Evidence, Ranking, count_confusion, join, rank_classes


def test_batches_join_to_what_one_batch_says():
    scores, truths = torch.rand(5, 3), torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    errors, confusion = torch.rand(5), torch.ones(3, 3, dtype=torch.long)

    def of(rows):
        ranking = rank_classes(scores[rows], truths[rows])
        return Evidence(errors[rows], ranking, confusion)

    whole, parts = of(slice(0, 5)), join([of(slice(0, 2)), of(slice(2, 5))])
    assert torch.equal(parts.errors, whole.errors)
    for name in ("classes", "scores", "hits", "num_truths"):
        assert torch.equal(getattr(parts.ranking, name), getattr(whole.ranking, name))
    assert torch.equal(parts.confusion, 2 * confusion)
    assert list(whole.ranking.occurring()) == [0, 1, 2]


def test_of_confusions_only_the_sum_is_kept():
    living: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def batches():
        for _ in range(9):
            confusion = torch.ones(2, 2, dtype=torch.long)
            living.add(confusion)
            yield Evidence(torch.zeros(1), confusion=confusion)
            assert len(living) <= 2

    assert join(batches()).confusion.tolist() == [[9, 9], [9, 9]]


def test_a_class_has_its_answers_from_the_best_down():
    ranking = Ranking(
        torch.tensor([1, 0, 1, 1]),
        torch.tensor([0.2, 0.9, 0.7, 0.5]),
        torch.tensor([True, True, True, False]),
        torch.tensor([1, 2]),
    )
    scores, hits = ranking.of_class(1)
    torch.testing.assert_close(scores, torch.tensor([0.7, 0.5, 0.2], dtype=torch.double))
    assert hits.tolist() == [1, 1, 2]


def test_confusion_has_a_row_for_each_true_class():
    found = count_confusion(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 2]]), 3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_of_many_classes_the_most_probable_are_ranked():
    scores, truths = torch.tensor([[0.1, 0.6, 0.3]]), torch.tensor([[1, 0, 0]])
    ranking = rank_classes(scores, truths, most=2)
    assert (ranking.classes.tolist(), ranking.hits.tolist()) == ([1, 2], [False, False])
    assert ranking.num_truths.tolist() == [1, 0, 0]  # which is missed
