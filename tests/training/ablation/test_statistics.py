import pytest
import torch
from scipy import stats

from training.studies.study import draw_sources, effective_sources, holm, paired_difference


def test_of_seeds_alone_it_is_the_paired_t_test() -> None:
    first, second = [1.0, 1.3, 0.8, 1.1], [0.7, 0.9, 0.8, 0.6]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    found, expected = paired_difference(differences, None, 1), stats.ttest_rel(first, second)
    assert found is not None
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p_value) == pytest.approx((low, high, expected.pvalue))


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


@pytest.mark.parametrize("count_all", [False, True])
def test_intervals_hold_what_they_promise_where_few_pictures_carry_most_images(count_all: bool) -> None:
    """As in our held-out images: 14 photographs with 42 images each, and 242 pictures with one or two."""
    sizes = torch.tensor([42.0] * 14 + [1.8] * 242, dtype=torch.float64)
    draws, generator, misses, runs = draw_sources(len(sizes)), torch.Generator().manual_seed(1), 0, 1000
    shares, total = draws * sizes, draws @ sizes
    assert effective_sources(sizes.tolist()) == pytest.approx(14.9, abs=0.1)
    for _ in range(runs):
        seeds, sources = (torch.randn(*shape, generator=generator).double() for shape in ((5, 1), (1, len(sizes))))
        noise = torch.randn(5, len(sizes), generator=generator).double() / sizes.sqrt()
        scores = 0.1 * seeds + sources + 0.3 * noise
        values, resampled = scores @ sizes / sizes.sum(), (shares @ scores.T / total[:, None]).T
        count = len(sizes) if count_all else effective_sources(sizes.tolist())
        found = paired_difference(values.tolist(), resampled, count)
        assert found is not None
        misses += found.p_value < 0.01
    assert (misses / runs > 0.013) == count_all  # of pictures alone, one in a hundred is promised


def test_sources_of_equal_share_all_count() -> None:
    assert effective_sources([2.0] * 30) == pytest.approx(30)
    assert effective_sources([1.0, 0.0, 0.0]) == 1


def test_sources_are_drawn_with_replacement() -> None:
    assert DRAWS.shape == (1000, 30)
    assert (DRAWS.sum(1) == 30).all()
    assert DRAWS.mean().item() == 1
    assert torch.equal(DRAWS, draw_sources(30))
    assert not torch.equal(DRAWS, draw_sources(30, seed=1))


def test_no_interval_of_a_single_seed() -> None:
    assert paired_difference([0.3], None, 5) is None
    assert paired_difference([0.1, 0.1], None, 5) is None  # a tie of two seeds proves nothing


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
