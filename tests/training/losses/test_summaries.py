import math

import pytest
import torch
from torch import Tensor

from training.losses.summaries import (
    SUMMARY_LOSSES,
    Spread,
    angle_summary_loss,
    balanced_summary_loss,
    cosine_summary_loss,
    tangent_sphere_summary_loss,
)
from training.targets.dispersion import SummaryDispersion
from training.targets.phi_s import PhiS


class Known:
    def __init__(self, value: float, *direction: float) -> None:
        self.value, self.direction = (
            torch.tensor(value),
            torch.nn.functional.normalize(torch.tensor(direction).float(), dim=0),
        )


ONE = Known(1.0, 1.0, 2.0)
HALF = Known(0.5, 1.0, 2.0)


@pytest.mark.parametrize("name", SUMMARY_LOSSES)
def test_summary_losses_vanish_for_parallel_vectors(name: str) -> None:
    summary = torch.randn(4, 8)
    length = 1 if name == "softmax_kl" else 3
    assert SUMMARY_LOSSES[name](length * summary, summary, Known(1.0, 1, 2, 3, 4, 5, 6, 7, 8)).item() == pytest.approx(
        0, abs=1e-5
    )


def test_balanced_summary_loss_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    expected = ((math.pi / 2) ** 2 + (math.pi / 4) ** 2) / 2 / 0.5
    assert balanced_summary_loss(student, teacher, HALF).item() == pytest.approx(expected, rel=1e-5)
    assert angle_summary_loss(student, teacher, HALF).item() == pytest.approx(expected * 0.5, rel=1e-5)
    assert cosine_summary_loss(student, teacher, ONE).item() == pytest.approx((1 + 1 - 0.5**0.5) / 2, rel=1e-5)


@pytest.mark.parametrize("angle", [0.0, math.pi])
def test_gradient_is_finite_at_parallel_and_opposite_vectors(angle: float) -> None:
    student = torch.tensor([[math.cos(angle), math.sin(angle)]], requires_grad=True)
    balanced_summary_loss(student, torch.tensor([[1.0, 0.0]]), ONE).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        balanced_summary_loss(torch.ones(1, 2), torch.ones(1, 3), ONE)


def test_softmax_kl_by_hand() -> None:
    student, teacher = [[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]], [[1.0, 1.0, 0.0], [0.0, -1.0, 2.0]]
    expected = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        q, p = ([math.exp(x) / sum(map(math.exp, each)) for x in each] for each in (ours, theirs))
        expected += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)) / 2
    loss = SUMMARY_LOSSES["softmax_kl"](torch.tensor(student), torch.tensor(teacher), ONE)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def in_the_plane(vector: Tensor, direction: Tensor) -> Tensor:
    """The same map, by the sine: as long as the angle, towards what is at a right angle to the direction."""
    along = vector.double() @ direction.double()
    across = vector.double() - along * direction.double()
    return math.atan2(float(across.norm()), float(along)) * across / across.norm()


def test_tangent_sphere_by_hand() -> None:
    # On a great circle through the mean direction distances are differences of angles.
    angles = [0.3, -0.9]
    student, teacher = (torch.tensor([[2 * math.cos(a), 2 * math.sin(a), 0.0]]) for a in angles)
    loss = tangent_sphere_summary_loss(student, teacher, Known(0.5, 1.0, 0.0, 0.0))
    assert loss.item() == pytest.approx(1.2**2 / 0.5, rel=1e-5)
    # Two vectors at one angle, a right angle apart as seen from the mean direction.
    student, teacher = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    loss = tangent_sphere_summary_loss(student, teacher, Known(1.0, 1.0, 0.0, 0.0))
    assert loss.item() == pytest.approx(2 * (math.pi / 4) ** 2, rel=1e-5)


def test_tangent_sphere_follows_its_formula() -> None:
    spread = SummaryDispersion(6)
    spread.update(torch.randn(100, 6) + 1)
    student, teacher = torch.randn(5, 6) + 1, torch.randn(5, 6)
    pairs = zip(student, teacher, strict=True)
    squares = [
        float((in_the_plane(x, spread.direction) - in_the_plane(y, spread.direction)).square().sum()) for x, y in pairs
    ]
    expected = sum(squares) / 5 / float(spread.value)
    assert tangent_sphere_summary_loss(student, teacher, spread).item() == pytest.approx(expected, rel=1e-4)


def test_tangent_sphere_is_the_error_of_a_plane_standardized_by_phi_s() -> None:
    """As TAO computes it; exactly so where the plane's mean is zero."""
    around = torch.randn(400, 7)
    vectors = torch.cat([torch.ones(800, 1), torch.cat([around, -around])], dim=1)
    spread = SummaryDispersion(8)
    spread.update(vectors)
    plane = PhiS(8)
    points = torch.stack([in_the_plane(vector, spread.direction) for vector in vectors]).float()
    plane.update(points[:, :, None, None])
    plane.end_step()
    plane.refit()
    student, teacher = torch.randn(9, 8) + 0.5, vectors[:9]
    ours, theirs = (
        plane.standardize(torch.stack([in_the_plane(v, spread.direction) for v in each]).float()[:, :, None, None])
        for each in (student, teacher)
    )
    expected = (ours - theirs).square().mean().item()
    assert tangent_sphere_summary_loss(student, teacher, spread).item() == pytest.approx(expected, rel=1e-4)


def test_tangent_sphere_of_the_mean_direction_is_one() -> None:
    teacher = torch.randn(500, 6) + 1
    spread = SummaryDispersion(6)
    spread.update(teacher)
    constant = spread.direction.float().expand_as(teacher)
    assert tangent_sphere_summary_loss(constant, teacher, spread).item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("name", SUMMARY_LOSSES)
def test_gradients_are_finite_at_the_mean_direction_and_opposite_to_it(name: str) -> None:
    spread: Spread = Known(0.5, 1.0, 0.0)
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    SUMMARY_LOSSES[name](student, torch.tensor([[0.6, 0.8], [0.6, 0.8]]), spread).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
