import pytest

from modeling_radio.training.distillation.schedule import cosine_with_warmup, linear_warmup


def test_warmup_is_linear_and_reaches_the_peak() -> None:
    assert [cosine_with_warmup(step, 100, 4) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine_ends_at_zero() -> None:
    assert cosine_with_warmup(0, 100, 0) == 1
    assert cosine_with_warmup(50, 100, 0) == pytest.approx(0.5)
    assert cosine_with_warmup(100, 100, 0) == pytest.approx(0)
    values = [cosine_with_warmup(step, 100, 10) for step in range(10, 100)]
    assert values == sorted(values, reverse=True)


def test_warmup_rises_from_where_it_begins() -> None:
    assert [linear_warmup(step, 4) for step in range(-2, 6)] == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    assert [linear_warmup(step, 0) for step in (-1, 0, 1)] == [0, 1, 1]
