import pytest
import torch
from torch.nn import functional as F

from training.words.ridge import (
    Pairs,
    Regression,
    as_layer,
    cross_validate,
    embed_variants,
    fit_maps,
    recognition,
    without_direction,
)


def test_a_map_is_the_solution_of_the_penalized_normal_equations():
    sources, targets = torch.randn(40, 5).double(), torch.randn(40, 3).double()
    (layer,) = Regression(5, 3).add(sources[:15], targets[:15]).add(sources[15:], targets[15:]).fit([0.3])
    centered, wanted = sources - sources.mean(0), targets - targets.mean(0)
    weight = torch.linalg.solve(centered.T @ centered / 40 + 0.3 * torch.eye(5).double(), centered.T @ wanted / 40)
    torch.testing.assert_close(layer.weight.double(), weight.T, atol=1e-5, rtol=1e-4)
    expected = centered @ weight + targets.mean(0)
    torch.testing.assert_close(layer(sources.float()).double(), expected, atol=1e-5, rtol=1e-4)


def test_the_variance_is_that_of_the_sources():
    sources = torch.randn(50, 4) * 3 + 7
    regression = Regression(4, 1).add(sources, torch.zeros(50, 1))
    assert regression.variance == pytest.approx(sources.var(dim=0, correction=0).mean().item(), rel=1e-4)


def test_every_variant_is_taken_to_what_tells_its_target_from_the_others():
    names = F.pad(torch.randn(30, 5), (1, 0))
    sources = torch.stack([names, names + torch.tensor([5.0, 0, 0, 0, 0, 0])], dim=1)  # a prompt moves all names alike
    targets = names @ torch.randn(6, 4) + 9
    (layer,) = fit_maps(Pairs(sources, targets), [1e-6])
    for variant in (0, 1):
        actual = layer(sources[:, variant])
        torch.testing.assert_close(actual, targets - targets.mean(0), atol=1e-3, rtol=1e-3)


def test_recognition_is_the_mean_reciprocal_rank():
    layer, targets = as_layer(torch.eye(4), torch.zeros(4)), torch.eye(4)
    assert recognition(layer, Pairs(targets[:, None] - 0.25, targets)) == 1.0
    weaker = targets[[1, 0, 2, 3]] + 0.5 * targets - 0.25  # the first two are recognized second
    assert recognition(layer, Pairs(weaker[:, None], targets)) == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)


def test_left_out_pairs_choose_the_penalty():
    truth, sources = torch.randn(20, 8), torch.randn(60, 1, 20)
    penalties = [1e-6, 1e6]
    clean = cross_validate(Pairs(sources, sources[:, 0] @ truth), penalties)
    noise = cross_validate(Pairs(sources, torch.randn(60, 8)), penalties)
    assert clean[0] == pytest.approx(1.0)
    assert clean[0] > clean[1] > max(noise)


def test_too_few_pairs_cannot_be_divided():
    with pytest.raises(ValueError, match="`pairs` must be at least 10 for cross-validation, got 9"):
        cross_validate(Pairs(torch.randn(9, 1, 2), torch.randn(9, 2)), [1.0])


def test_a_direction_is_taken_out_of_every_answer():
    layer, direction = as_layer(torch.randn(5, 4), torch.randn(4)), torch.tensor([1.0, 2.0, 0.0, -1.0])
    points = torch.randn(7, 5)
    plain, rest = layer(points), without_direction(layer, direction)(points)
    torch.testing.assert_close(rest @ direction, torch.zeros(7), atol=1e-5, rtol=0)
    unit = F.normalize(direction, dim=0)
    torch.testing.assert_close(rest, plain - (plain @ unit)[:, None] * unit, atol=1e-5, rtol=1e-4)


def test_variants_are_averaged_as_unit_vectors():
    layer = as_layer(torch.eye(2), torch.zeros(2))
    embedded = embed_variants(layer, torch.tensor([[[100.0, 0.0], [0.0, 1.0]]]))
    torch.testing.assert_close(embedded, torch.full((1, 2), 0.5**0.5))
