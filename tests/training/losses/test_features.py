import sys

import pytest
import torch
from torch import Tensor

from modeling_radio.training.losses.features import FEATURE_LOSSES, feature_loss, mse_feature_loss


def smooth_l1(student: Tensor, teacher: Tensor) -> float:
    differences = [abs(float(d)) for d in student - teacher]
    return sum(d**2 / 2 if d < 1 else d - 1 / 2 for d in differences) / len(differences)


def cosine_error(student: Tensor, teacher: Tensor) -> float:
    return 1 - float(student @ teacher / (student @ student).sqrt() / (teacher @ teacher).sqrt())


FORMULAS = {
    "mse": lambda x, y: float(((x - y) ** 2).sum()) / len(x),
    "smooth_l1": smooth_l1,
    "cosine": cosine_error,
    "cosine_smooth_l1": lambda x, y: 0.9 * cosine_error(x, y) + 0.1 * smooth_l1(x, y),
}
"""Losses of two tokens."""


@pytest.fixture
def maps() -> tuple[Tensor, Tensor, Tensor]:
    """Maps of two images with differences below and above 1, and not all positions valid."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (1.5 * torch.randn(2, 4, 2, 3, generator=generator) for _ in range(2))
    valid = torch.tensor([[[True, True, False], [True, False, True]], [[False, False, False], [True, True, False]]])
    assert 0.2 < ((student - teacher).abs() < 1).float().mean() < 0.8
    return student, teacher, valid


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_losses_follow_their_formulas_for_each_image_by_itself(maps: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    student, teacher, valid = maps
    loss, expected = FEATURE_LOSSES[name], []
    for image in range(2):
        own, theirs = (part[image].movedim(0, -1)[valid[image]].double() for part in (student, teacher))
        values = [FORMULAS[name](*pair) for pair in zip(own, theirs, strict=True)]
        expected.append(sum(values) / len(values))
    assert loss(*maps).tolist() == pytest.approx(expected, rel=1e-5)
    apart = torch.cat([loss(*(part[image : image + 1] for part in maps)) for image in range(2)])
    torch.testing.assert_close(loss(*maps), apart, rtol=1e-6, atol=0)
    assert loss(student, student, valid).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert loss(student.bfloat16(), teacher, valid).dtype == torch.float32


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_image_without_valid_positions_counts_as_zero_without_nan(name: str) -> None:
    student, valid = torch.ones(2, 3, 2, 2, requires_grad=True), torch.ones(2, 2, 2, dtype=torch.bool)
    valid[0] = False
    loss = FEATURE_LOSSES[name](student, torch.tensor([0.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(2, -1, 2, 2), valid)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss[0] == 0 < loss[1]
    assert torch.equal(gradient[0], torch.zeros(3, 2, 2))
    assert (gradient[1].abs().amax(0) > 0).all()


@pytest.mark.parametrize("is_channels_last", [False, True])
def test_squared_error_is_the_plain_one_in_any_layout(*, is_channels_last: bool) -> None:
    maps = torch.randn(2, 3, 4, 5, 24) if is_channels_last else torch.randn(2, 3, 24, 4, 5)
    student, teacher = maps.movedim(-1, 2) if is_channels_last else maps
    student = student.clone(memory_format=torch.preserve_format).requires_grad_()
    valid = torch.ones(3, 4, 5, dtype=torch.bool)
    losses = (mse_feature_loss(student, teacher, valid), (student - teacher).square().mean(1).mean((1, 2)))
    found = [(loss, *torch.autograd.grad(loss.sum(), student)) for loss in losses]
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)  # another order of adding up


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        mse_feature_loss(torch.ones(1, 2, 2, 2), torch.ones(1, 2, 3, 3), torch.ones(1, 2, 2, dtype=torch.bool))


def test_a_loss_of_ones_own_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text("def zero(student, teacher, valid): return student.sum((1, 2, 3)) * 0\n")
    monkeypatch.chdir(tmp_path)
    features = torch.ones(2, 3, 4, 4)
    assert feature_loss("own_losses:zero")(features, features, features[:, 0] > 0).tolist() == [0, 0]
    assert feature_loss("mse") is mse_feature_loss
    sys.modules.pop("own_losses")
