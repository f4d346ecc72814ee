"""J and F beside definitions written out pixel by pixel."""

import numpy as np
import pytest
import torch

from modeling_radio.training.evaluation.metrics.video import boundary, boundary_accuracy, region_similarity


def edge_by_hand(mask: np.ndarray) -> list[tuple[int, int]]:
    """Pixels that differ from the right, lower or lower right neighbor, as far as there is one."""
    rows, cols = mask.shape
    found = []
    for row, col in np.ndindex(rows, cols):
        near = [(row, col + 1), (row + 1, col), (row + 1, col + 1)]
        if any(mask[row, col] != mask[other] for other in near if other[0] < rows and other[1] < cols):
            found.append((row, col))
    return found


def accuracy_by_hand(predicted: np.ndarray, true: np.ndarray) -> float:
    reach = np.ceil(0.008 * np.sqrt(np.sum(np.square(true.shape))))
    own, other = edge_by_hand(predicted), edge_by_hand(true)

    def share(pixels, near):
        return np.mean([any(np.hypot(row - a, col - b) <= reach for a, b in near) for row, col in pixels])

    precision, recall = share(own, other), share(other, own)
    return 2 * precision * recall / (precision + recall)


def blobs(seed: int) -> torch.Tensor:
    noise = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (60, 80), mode="bicubic")[0, 0] > 0.2


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_by_hand(seed):
    predicted, true = blobs(seed), blobs(seed) ^ (blobs(seed + 10) & blobs(seed + 20))
    assert [tuple(pixel) for pixel in boundary(true).nonzero().tolist()] == edge_by_hand(true.numpy())
    pixels = {name: {*map(tuple, mask.nonzero().tolist())} for name, mask in (("own", predicted), ("true", true))}
    expected = len(pixels["own"] & pixels["true"]) / len(pixels["own"] | pixels["true"])
    assert region_similarity(predicted, true) == pytest.approx(expected, abs=1e-6)
    assert boundary_accuracy(predicted, true) == pytest.approx(
        accuracy_by_hand(predicted.numpy(), true.numpy()), abs=1e-6
    )


def test_empty_masks():
    empty, full = torch.zeros(9, 9, dtype=torch.bool), blobs(0)[:9, :9].clone()
    full[4, 4] = True
    full[0, 0] = False
    assert (region_similarity(empty, empty), boundary_accuracy(empty, empty)) == (1, 1)
    assert (region_similarity(full, empty), boundary_accuracy(full, empty)) == (0, 0)
    assert (region_similarity(empty, full), boundary_accuracy(empty, full)) == (0, 0)
