"""Keypoints and 3D points found in another image, beside Probe3D's formulas written out in NumPy."""

import numpy as np
import pytest
import torch

from modeling_radio.metrics.correspondence import keypoint_errors, matched_points


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(source, target, source_points, target_points):
    """Errors of keypoints: bilinear between the four patches around (corners on corners), then the largest cosine."""
    side, errors = source.shape[1], []
    unit = [each / np.linalg.norm(each, axis=0) for each in (source, target)]
    for (x, y), place in zip(source_points, target_points, strict=True):
        x, y = x * (side - 1), y * (side - 1)
        left, top = min(int(x), side - 2), min(int(y), side - 2)
        right, low = x - left, y - top
        vector = (
            unit[0][:, top, left] * (1 - right) * (1 - low)
            + unit[0][:, top, left + 1] * right * (1 - low)
            + unit[0][:, top + 1, left] * (1 - right) * low
            + unit[0][:, top + 1, left + 1] * right * low
        )
        row, col = np.unravel_index(np.tensordot(vector, unit[1], 1).argmax(), (side, side))
        errors.append(np.hypot(col / side - place[0], row / side - place[1]))
    return errors


def test_errors_of_keypoints_are_those_of_the_formula():
    source, target = normal(6, 7, 7, seed=0), normal(6, 7, 7, seed=1)
    points = torch.rand(2, 40, 2, generator=torch.Generator().manual_seed(2))
    found = keypoint_errors(source, target, *points)
    assert found.tolist() == pytest.approx(
        by_hand(*(each.double().numpy() for each in (source, target, *points))), abs=1e-6
    )
    own = keypoint_errors(
        source, source, torch.tensor([[0.0, 0.0], [0.5, 1.0]]), torch.tensor([[0.0, 0.0], [3 / 7, 6 / 7]])
    )
    assert own.tolist() == pytest.approx([0, 0], abs=1e-6)


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75, as torch documents its bicubic resize."""
    near, far = np.abs(distance), np.abs(distance)
    return np.where(
        near <= 1,
        1.25 * near**3 - 2.25 * near**2 + 1,
        np.where(far < 2, -0.75 * far**3 + 3.75 * far**2 - 6 * far + 3, 0),
    )


def resized(features: np.ndarray, side: int) -> np.ndarray:
    count = features.shape[1]
    places = (np.arange(side) + 0.5) * count / side - 0.5
    weights = np.zeros((side, count))
    for row, place in enumerate(places):
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            weights[row, np.clip(tap, 0, count - 1)] += cubic(np.array(place - tap))
    return np.einsum("ai,bj,dij->dab", weights, weights, features)


def matches_by_hand(source, target, source_points, target_points, number):
    """All pixels with a point against all: the nearest by cosine, the clearest ratio of distances first."""
    ends = []
    for features, points in ((source, source_points), (target, target_points)):
        full = resized(features, points.shape[1])
        full /= np.linalg.norm(full, axis=0)
        places = [
            (row, col) for row in range(points.shape[1]) for col in range(points.shape[2]) if points[2, row, col] > 0
        ]
        ends.append(
            [(full[:, row, col] / np.linalg.norm(full[:, row, col]), points[:, row, col]) for row, col in places]
        )
    found = []
    for vector, point in ends[0]:
        distances = sorted((1 - vector @ other, index) for index, (other, _) in enumerate(ends[1]))
        found.append((distances[0][0] / distances[1][0], point, ends[1][distances[0][1]][1]))
    clearest = sorted(found, key=lambda entry: entry[0])[:number]
    return np.stack([entry[1] for entry in clearest]), np.stack([entry[2] for entry in clearest])


def test_matches_are_those_of_the_formula():
    source, target = normal(8, 4, 4, seed=0), normal(8, 4, 4, seed=1)
    points = [normal(3, 10, 10, seed=seed) for seed in (2, 3)]
    found = matched_points(source, target, *points, 20)
    expected = matches_by_hand(*(each.double().numpy() for each in (source, target, *points)), 20)
    for own, other in zip(found, expected, strict=True):
        assert own.shape == (20, 3)
        np.testing.assert_allclose(own.numpy(), other, atol=1e-6)
    assert len(matched_points(source, target, *points, 1000)[0]) == int((points[0][2] > 0).sum())
