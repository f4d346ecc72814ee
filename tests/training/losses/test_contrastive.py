import pytest
import torch
from torch.nn import functional as F

from training.losses.contrastive import (
    SUMMARY_CONTRASTS,
    TEMPERATURE,
    cell_losses,
    centered,
    info_nce_losses,
    relational_losses,
)


def cone(num_images: int) -> torch.Tensor:
    """Summaries within a few degrees of each other."""
    generator = torch.Generator().manual_seed(0)
    return 5 * torch.ones(16) + 0.2 * torch.randn(num_images, 16, generator=generator)


def test_a_relation_that_is_met_costs_nothing() -> None:
    teacher = centered(cone(6), F.normalize(cone(200), dim=-1).mean(0))
    assert relational_losses(teacher, teacher, teacher, torch.arange(6)).abs().max() < 1e-5
    assert (relational_losses(-teacher, teacher, teacher, torch.arange(6)) > 1).all()


def test_two_candidates_by_hand() -> None:
    candidates = torch.eye(2)
    student, teacher = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]])
    p, q = ((vector @ candidates.T / TEMPERATURE).softmax(1)[0] for vector in (teacher, student))
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close(relational_losses(student, teacher, candidates, torch.tensor([0]))[0], expected)
    torch.testing.assert_close(info_nce_losses(student, teacher, candidates, torch.tensor([0]))[0], -q[0].log())


def test_relations_leave_near_duplicates_together_and_info_nce_pushes_them_apart() -> None:
    teacher = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-3, 0.0], [0.0, 0.0, 1.0]]), dim=-1)
    slopes = {}
    for kind, compare in SUMMARY_CONTRASTS.items():
        student = teacher.clone().requires_grad_()
        losses = compare(F.normalize(student, dim=-1), teacher, teacher, torch.arange(3))
        (slopes[kind],) = torch.autograd.grad(losses[0], student)
    assert slopes["relational"][0].norm() < 1e-4
    assert slopes["info_nce"][0].norm() > 1e-3


def test_centered_summaries_of_a_cone_are_not_all_alike() -> None:
    summaries = cone(300)
    mean = F.normalize(summaries, dim=-1).mean(0)
    plain, own = F.normalize(summaries, dim=-1), centered(summaries, mean)
    assert (plain @ plain.T).mean() > 0.99
    assert (own @ own.T).mean().abs() < 0.05
    torch.testing.assert_close(own.norm(dim=1), torch.ones(300))


@pytest.mark.parametrize("kind", SUMMARY_CONTRASTS)
def test_length_of_a_summary_does_not_matter(kind: str) -> None:
    mean = F.normalize(cone(50), dim=-1).mean(0)
    candidates, places = centered(cone(5), mean), torch.arange(5)
    student, compare = cone(7)[2:], SUMMARY_CONTRASTS[kind]
    first, second = (compare(centered(each, mean), candidates, candidates, places) for each in (student, 9 * student))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_cells_by_hand() -> None:
    candidates = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])  # the second is none
    student = torch.tensor([[[3.0, 4.0], [2.0, 0.0]]])
    losses = cell_losses(student, candidates, torch.tensor([[2, 0]]), torch.ones(1, 2, dtype=torch.bool))
    logits = torch.tensor([[0.6, 0.8], [1.0, 0.0]]) / TEMPERATURE
    torch.testing.assert_close(losses, F.cross_entropy(logits, torch.tensor([1, 0]))[None])


def test_cells_that_are_not_seen_do_not_count_and_have_no_gradient() -> None:
    candidates = F.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    candidates[1] = 0
    student = torch.ones(2, 2, 3, requires_grad=True)
    is_seen = torch.tensor([[True, False], [False, False]])
    losses = cell_losses(student, candidates, torch.tensor([[0, 1], [1, 1]]), is_seen)
    losses.sum().backward()
    assert student.grad is not None
    assert losses[0] > 0
    assert losses[1] == 0
    assert (student.grad[0, 0] != 0).any()
    assert (student.grad[~is_seen] == 0).all()
