import pytest
import torch
from scipy import stats

from training.ablation.statistics import draw_sources, holm, paired_difference


def test_of_seeds_alone_it_is_the_paired_t_test() -> None:
    first, second = [1.0, 1.3, 0.8, 1.1], [0.7, 0.9, 0.8, 0.6]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    found, expected = paired_difference(differences, None, 1), stats.ttest_rel(first, second)
    assert found is not None
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p_value) == pytest.approx((low, high, expected.pvalue))
    assert found.num_pairs == 4


def test_images_widen_the_interval() -> None:
    differences, generator = [0.1, 0.12, 0.09], torch.Generator().manual_seed(0)
    alone = paired_difference(differences, None, 20)
    noise = 0.05 * torch.randn(1, 1000, generator=generator, dtype=torch.float64)
    with_images = paired_difference(differences, torch.tensor(differences)[:, None] + noise, 20)
    assert alone is not None
    assert with_images is not None
    assert with_images.mean == alone.mean
    assert with_images.low < alone.low
    assert with_images.p_value > alone.p_value
    # With little between seeds, degrees of freedom are those of the 20 sources.
    error = (torch.tensor(differences).double().var() / 3 + noise.var()).sqrt().item()
    assert (with_images.high - with_images.low) / 2 / error == pytest.approx(stats.t.ppf(0.975, 19), rel=0.02)


def test_intervals_hold_what_they_promise() -> None:
    generator = torch.Generator().manual_seed(1)
    misses = 0
    for _ in range(400):
        seeds = 0.3 * torch.randn(5, 1, generator=generator, dtype=torch.float64)
        sources = torch.randn(1, 30, generator=generator, dtype=torch.float64)
        scores = seeds + sources + 0.5 * torch.randn(5, 30, generator=generator, dtype=torch.float64)
        draws = DRAWS @ scores.T / 30
        found = paired_difference(scores.mean(1).tolist(), draws.T, 30)
        assert found is not None
        misses += found.excludes_zero
    assert misses / 400 < 0.06


DRAWS = draw_sources(30)


def test_sources_are_drawn_with_replacement() -> None:
    assert DRAWS.shape == (1000, 30)
    assert (DRAWS.sum(1) == 30).all()
    assert DRAWS.mean().item() == 1
    assert torch.equal(DRAWS, draw_sources(30))
    assert not torch.equal(DRAWS, draw_sources(30, seed=1))


def test_no_interval_of_a_single_seed() -> None:
    assert paired_difference([0.3], None, 5) is None
    same = paired_difference([0.0, 0.0], None, 5)
    assert same is not None
    assert (same.low, same.high, same.p_value, same.excludes_zero) == (0, 0, 1, False)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
