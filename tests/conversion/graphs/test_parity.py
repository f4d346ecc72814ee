"""Differences and cosines add up over inputs, and what is too far away is refused by name."""

import pytest
import torch

from modeling_radio.conversion.graphs.parity import OutputParity, compare, require_cosine, require_difference


def test_vectors_run_along_the_last_dimension():
    expected = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    parity = compare(torch.tensor([[[1.0, 0.0], [2.0, 2.0]]]), expected)
    assert (parity.largest_difference, parity.num_vectors) == (2, 2)
    assert parity.lowest_cosine == pytest.approx(0.5**0.5)
    assert parity.mean_cosine == pytest.approx((1 + 0.5**0.5) / 2)
    both = parity + compare(expected[:, :1], expected[:, :1])
    assert (both.largest_difference, both.num_vectors, both.lowest_cosine) == (2, 3, parity.lowest_cosine)
    assert both.mean_cosine == pytest.approx((2 + 0.5**0.5) / 3)
    assert compare(torch.zeros(0, 3), torch.zeros(0, 3)) == OutputParity()
    with pytest.raises(ValueError, match="`output`"):
        compare(torch.zeros(1, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("sides", [(torch.nan, 1.0), (1.0, torch.nan), (torch.inf, torch.inf)])
def test_what_is_no_number_is_refused_in_every_way(sides):
    output, expected = (torch.tensor([[side, 1.0]]) for side in sides)
    parities = {"good": OutputParity(), "features": compare(output, expected)}
    with pytest.raises(ValueError, match="by up to inf"):
        require_difference(parities, 1e9)
    with pytest.raises(ValueError, match="'features'"):
        require_cosine(parities, 0.5)
