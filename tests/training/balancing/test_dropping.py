import pytest
import torch
from driven_weights import NAMES, batch_of, weights_of
from torch import Tensor

from training.balancing.base import LossTerm
from training.balancing.dropping import TeacherDropping


NUM_IMAGES = 4000
ALL = tuple(range(NUM_IMAGES))


def terms_of(losses: dict[str, Tensor]) -> dict[str, LossTerm]:
    return {name: LossTerm(1.0, each.mean(), lambda each=each: each, torch.mean) for name, each in losses.items()}


def dropping(step: int) -> TeacherDropping:
    weights = weights_of("teacher_dropping")
    assert isinstance(weights, TeacherDropping)
    weights.begin_step(step)
    return weights


def random_losses(num_images: int = NUM_IMAGES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(num_images, generator=generator) for name in NAMES}


def kept(losses: dict[str, Tensor], teachers: str = "abc") -> dict[str, Tensor]:
    """Which images keep a teacher and by how much: the gradient of their number times the loss."""
    leaves = {name: each.clone().requires_grad_() for name, each in losses.items()}
    num_images = len(losses["features/a"])
    batch = batch_of(9, tuple(range(num_images)), num_images, teachers)
    total = torch.stack(list(dropping(9).weigh(batch, terms_of(leaves)).values())).sum()
    return dict(zip(leaves, torch.autograd.grad(num_images * total, list(leaves.values())), strict=True))


def test_the_largest_loss_is_kept_and_others_half_of_the_time() -> None:
    losses = random_losses()
    factors = kept(losses)
    dense = torch.stack([factors[f"features/{name}"] for name in "abc"])
    largest = torch.stack([losses[f"features/{name}"] for name in "abc"]).argmax(0)
    assert (dense.gather(0, largest[None]) > 0).all()
    others = torch.ones_like(dense, dtype=torch.bool).scatter(0, largest[None], False)
    assert (dense[others] > 0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_no_teacher_takes_all() -> None:
    """Not even one whose loss is always far above the others'."""
    factors = kept({**random_losses(), "features/b": torch.full((NUM_IMAGES,), 1e6)})
    shares = {name: float(factors[f"features/{name}"].mean()) for name in "abc"}
    assert shares == pytest.approx({"a": 0.625, "b": 1.75, "c": 0.625}, abs=0.05)  # (1 + 3 / 2) / 4 each


def test_images_count_alike() -> None:
    factors = kept(random_losses())
    torch.testing.assert_close(sum(factors[f"features/{name}"] for name in "abc"), torch.full((NUM_IMAGES,), 3.0))
    torch.testing.assert_close(sum(factors[f"summary/{name}"] for name in "ab"), torch.full((NUM_IMAGES,), 2.0))


def test_teachers_that_do_not_see_the_images_are_not_kept() -> None:
    losses = random_losses()
    losses["features/c"] = torch.full((NUM_IMAGES,), 9.0)  # would be the largest
    factors = kept(losses, teachers="ab")
    torch.testing.assert_close(factors["features/a"] + factors["features/b"], torch.full((NUM_IMAGES,), 2.0))


def test_parts_draw_what_the_whole_batch_does() -> None:
    losses = random_losses(8)
    whole = dropping(9).weigh(batch_of(9, tuple(range(8)), 8), terms_of(losses))
    weights = dropping(9)
    parts = [
        weights.weigh(batch_of(9, rows, 8), terms_of({name: each[list(rows)] for name, each in losses.items()}))
        for rows in ((4, 5, 6, 7), (0, 1, 2, 3))
    ]
    for name in NAMES:
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, whole[name])
    weights.end_step()
    assert sum(weights.scalars()[f"weight/features/{name}"] for name in "abc") == pytest.approx(3)


def test_nothing_is_dropped_before_the_start() -> None:
    losses = random_losses(8)
    weighted = dropping(2).weigh(batch_of(2, tuple(range(8)), 8), terms_of(losses))
    assert all(torch.equal(weighted[name], losses[name].mean()) for name in NAMES)
