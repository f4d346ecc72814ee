"""J and F of empty masks; others stand in tests/whole/test_official_values.py."""

import torch

from modeling_radio.metrics.video import boundary_accuracy, region_similarity


def test_empty_masks():
    empty = torch.zeros(9, 9, dtype=torch.bool)
    filled = empty.clone()
    filled[2:7, 3:9] = True
    assert (region_similarity(empty, empty), boundary_accuracy(empty, empty)) == (1, 1)
    assert (region_similarity(filled, empty), boundary_accuracy(filled, empty)) == (0, 0)
    assert (region_similarity(empty, filled), boundary_accuracy(empty, filled)) == (0, 0)
