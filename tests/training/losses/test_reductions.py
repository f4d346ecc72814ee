import pytest
import torch

from training.losses.reductions import REDUCTIONS, reduce_images


LOSSES, COUNTS = torch.tensor([3.0, 1.0, 2.0, 9.0]), torch.tensor([16, 4, 1, 0])
ALL_TOKENS = (16, 9, 4, 4)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("images", (3 + 1 + 2 + 9) / 4),
        ("tokens", (16 * 3 + 4 * 1 + 1 * 2) / 33),
        ("sqrt_tokens", (4 * 3 + 2 * 1 + 1 * 2) / 11),
    ],
)
def test_reductions_by_hand(reduction: str, expected: float) -> None:
    assert reduce_images(LOSSES, COUNTS, ALL_TOKENS, reduction).item() == pytest.approx(expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_parts_give_the_whole_whatever_is_in_them(reduction: str) -> None:
    parts = [slice(0, 1), slice(1, 4)]
    shares = [
        reduce_images(LOSSES[part], COUNTS[part], ALL_TOKENS, reduction) * len(LOSSES[part]) / len(LOSSES)
        for part in parts
    ]
    torch.testing.assert_close(sum(shares), reduce_images(LOSSES, COUNTS, ALL_TOKENS, reduction))


def test_equal_counts_make_all_reductions_equal() -> None:
    counts = torch.full((4,), 9)
    results = {reduce_images(LOSSES, counts, (9,) * 4, reduction).item() for reduction in REDUCTIONS}
    assert max(results) - min(results) < 1e-6


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_valid_is_no_division_by_zero(reduction: str) -> None:
    nothing = torch.zeros(3)
    assert reduce_images(nothing, nothing.long(), (4,) * 3, reduction).item() == 0
