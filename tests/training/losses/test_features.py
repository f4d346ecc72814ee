from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.losses.features import FEATURE_LOSSES, mse_feature_loss


def all_valid(features: Tensor) -> Tensor:
    return torch.ones(len(features), *features.shape[2:], dtype=torch.bool)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_feature_losses_are_zero_at_equality(name: str) -> None:
    features = torch.randn(2, 5, 3, 4)
    assert FEATURE_LOSSES[name](features, features, all_valid(features)).tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("is_channels_last", [False, True])
def test_squared_error_is_the_plain_one(*, is_channels_last: bool) -> None:
    """It goes over channels side by side in memory, for speed alone."""
    maps = torch.randn(2, 3, 4, 5, 24) if is_channels_last else torch.randn(2, 3, 24, 4, 5)
    found = []
    for error in (mse_feature_loss, lambda ours, theirs, valid: (ours - theirs).square().mean(1).mean((1, 2))):
        student, teacher = maps.movedim(-1, 2) if is_channels_last else maps
        student = student.clone(memory_format=torch.preserve_format).requires_grad_()
        loss = error(student, teacher, all_valid(student))
        found += [loss, *torch.autograd.grad(loss.sum(), student)]
    torch.testing.assert_close(found[0], found[2], rtol=1e-6, atol=0)  # another order of adding up
    torch.testing.assert_close(found[1], found[3], rtol=1e-6, atol=0)


def smooth_l1(student: Tensor, teacher: Tensor) -> float:
    differences = [abs(float(d)) for d in student - teacher]
    return sum(d**2 / 2 if d < 1 else d - 1 / 2 for d in differences) / len(differences)


def mse(student: Tensor, teacher: Tensor) -> float:
    return float(((student - teacher) ** 2).sum()) / len(student)


def cosine_error(student: Tensor, teacher: Tensor) -> float:
    return 1 - float(student @ teacher / (student @ student).sqrt() / (teacher @ teacher).sqrt())


FORMULAS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "mse": mse,
    "smooth_l1": smooth_l1,
    "cosine": cosine_error,
    "cosine_smooth_l1": lambda x, y: 0.9 * cosine_error(x, y) + 0.1 * smooth_l1(x, y),
}
"""Of two tokens, one number after the other."""


def tokens_of(features: Tensor, valid: Tensor, image: int) -> list[Tensor]:
    return list(features[image].movedim(0, -1)[valid[image]].double())


@pytest.fixture
def maps() -> tuple[Tensor, Tensor, Tensor]:
    """Maps of two images with differences below and above 1, and not all positions valid."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (1.5 * torch.randn(2, 4, 2, 3, generator=generator) for _ in range(2))
    valid = torch.tensor([[[True, True, False], [True, False, True]], [[False, False, False], [True, True, False]]])
    assert 0.2 < ((student - teacher).abs() < 1).float().mean() < 0.8
    return student, teacher, valid


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_follow_their_formulas_at_valid_positions(maps: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    student, teacher, valid = maps
    expected = []
    for image in range(2):
        pairs = zip(tokens_of(student, valid, image), tokens_of(teacher, valid, image), strict=True)
        values = [FORMULAS[name](*pair) for pair in pairs]
        expected.append(sum(values) / len(values))
    assert FEATURE_LOSSES[name](student, teacher, valid).tolist() == pytest.approx(expected, rel=1e-5)


def test_every_loss_has_its_formula() -> None:
    assert FEATURE_LOSSES.keys() == FORMULAS.keys()


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_what_one_image_gives_depends_on_no_other(maps: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    loss = FEATURE_LOSSES[name]
    apart = torch.cat([loss(*(part[image : image + 1] for part in maps)) for image in range(2)])
    torch.testing.assert_close(loss(*maps), apart, rtol=1e-6, atol=0)


def test_mse_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    # squared errors 0, 4, 9, 16
    assert mse_feature_loss(student, teacher, all_valid(student)).item() == 29 / 4
    valid = torch.tensor([[[True, True], [False, True]]])
    assert mse_feature_loss(student, teacher, valid).item() == pytest.approx(20 / 3)


def test_each_image_is_a_mean_over_its_own_positions() -> None:
    student, teacher = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    student[1] = 3.0
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    valid[1, 0] = valid[1, 1, 0] = False
    assert mse_feature_loss(student, teacher, valid).tolist() == [1, 9]


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_image_without_overlap_counts_as_zero_without_nan(name: str) -> None:
    student = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = FEATURE_LOSSES[name](student, torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(1, 1, 2, 2))


def test_gradient_reaches_the_student_only() -> None:
    student, teacher = torch.randn(2, 4, 2, 2, requires_grad=True), torch.randn(2, 4, 2, 2)
    for loss in FEATURE_LOSSES.values():
        student.grad = None
        loss(student, teacher, all_valid(teacher)).mean().backward()
        assert student.grad is not None
        assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_bfloat16_inputs_are_compared_in_float32(name: str) -> None:
    student, teacher = torch.randn(1, 4, 2, 2).bfloat16(), torch.randn(1, 4, 2, 2)
    assert FEATURE_LOSSES[name](student, teacher, all_valid(teacher)).dtype == torch.float32


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        mse_feature_loss(torch.ones(1, 2, 2, 2), torch.ones(1, 2, 3, 3), torch.ones(1, 2, 2, dtype=torch.bool))
