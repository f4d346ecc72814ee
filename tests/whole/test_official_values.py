"""Scores beside those of the benchmarks' own code, which was run once by hand on the same inputs on 2026-11-30.

Only its values are stored. Each test names repository, commit and functions.
"""

import numpy as np
import pytest
import torch

from modeling_radio.evaluation.data import Examples, ImagePair, Stacked
from modeling_radio.evaluation.features import StoredFeatures
from modeling_radio.evaluation.tasks.correspondence import keypoint_sums, mean_share, point_shares
from modeling_radio.evaluation.tasks.dpt_probes import depth_loss, depth_scores, normal_loss
from modeling_radio.metrics.concept_f1 import (
    concept_counts,
    concept_f1,
    image_correlation,
    positive_f1,
)
from modeling_radio.metrics.dense import normal_scores


def uniform(*shape: int, seed: int) -> torch.Tensor:
    """Numbers in [0, 1), float32."""
    return torch.from_numpy(np.random.default_rng(seed).random(shape)).float()


def stored(*maps: torch.Tensor) -> StoredFeatures:
    tokens = torch.cat([each.flatten(1).T for each in maps])
    grids = torch.tensor([[*each.shape[1:]] for each in maps])
    return StoredFeatures([{"features": tokens, "grids": grids}], len(maps))


def alike(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of two images that are equal but for noise."""
    first = uniform(*shape, seed=0) - 0.5
    return first, first + 0.5 * (uniform(*shape, seed=1) - 0.5)


def keypoints() -> tuple[torch.Tensor, torch.Tensor]:
    """Fifty points of an image and of another one, shares of a side of 800 pixels."""
    first = (800 * uniform(50, 2, seed=2)).int() / 800
    return first, ((first + 0.05 * uniform(50, 2, seed=3)).clamp(max=0.99) * 800).int() / 800


def test_keypoints_of_probe3d():
    """mbanani/probe3d at a1f1464: `compute_errors` of `evaluate_spair_correspondence.py`, and the share below 0.1."""
    pair = ImagePair(0, 1, *keypoints(), unit=1.0)
    assert float(mean_share(keypoint_sums(stored(*alike(12, 20, 20)), pair, 1))) == pytest.approx(0.6, abs=1e-6)


def surfaces() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Points of two images, a third of the pixels without one, and a turn with a step between the cameras."""
    first = torch.cat([0.1 * uniform(2, 48, 48, seed=4), 0.5 + 0.02 * uniform(1, 48, 48, seed=5)])
    move = torch.eye(4)
    move[0, :2], move[1, :2], move[:3, 3] = (
        torch.tensor([0.8, -0.6]),
        torch.tensor([0.6, 0.8]),
        torch.tensor([0.01, 0, 0]),
    )
    second = (move[:3, :3] @ first.flatten(1) + move[:3, 3:]).reshape(first.shape)
    return [each * (uniform(48, 48, seed=seed) > 0.3) for each, seed in ((first, 6), (second, 7))], move


def test_3d_recall_of_probe3d():
    """mbanani/probe3d at a1f1464: `estimate_correspondence_xyz`, `transform_points_Rt`, and shares below 1, 2, 5 cm."""
    points, move = surfaces()
    examples = Examples(Stacked(torch.zeros(2, 3, 48, 48, dtype=torch.uint8)), "x", points=points)
    shares = point_shares(stored(*alike(12, 9, 9)), examples, ImagePair(0, 1, move=move), torch.device("cpu"))
    assert shares.tolist() == pytest.approx([0.6952380952380952, 0.7047619047619048, 0.8380952380952381], abs=1e-6)


def depths() -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true depth in meters, a quarter of it not known."""
    true = 1 + 5 * uniform(2, 24, 32, seed=10)
    predicted = true * (0.7 + 0.7 * uniform(2, 24, 32, seed=11))
    return predicted, true * (uniform(2, 24, 32, seed=12) > 0.25)


def test_depth_of_probe3d():
    """mbanani/probe3d at a1f1464: `evaluate_depth` (d1 and rmse of both images) and `DepthLoss`."""
    expected = [0.6342756152153015, 0.7872322797775269, 0.6499999761581421, 0.7847817540168762]
    assert depth_scores(*depths()).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert depth_loss(*(each.double() for each in depths())).item() == pytest.approx(2.4688609850606476, abs=1e-6)


def normals() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted directions with a concentration, true normals, and the pixels that count."""
    true = torch.nn.functional.normalize(uniform(2, 3, 24, 32, seed=13) - 0.5, dim=1)
    noise = torch.cat([0.8 * (uniform(2, 3, 24, 32, seed=14) - 0.5), 4 * uniform(2, 1, 24, 32, seed=15) - 2], 1)
    return noise + torch.nn.functional.pad(true, (0, 0, 0, 0, 0, 1)), true, uniform(2, 24, 32, seed=16) > 0.25


def test_normals_of_probe3d():
    """mbanani/probe3d at a1f1464: `evaluate_surface_norm` (d1 to d3 of both images), uncertain `angular_loss`."""
    predicted, true, is_known = normals()
    scores = normal_scores(predicted[:, :3], true, is_known, (11.25, 22.5, 30.0))
    first = [0.21746575832366943, 0.7277397513389587, 0.9640411138534546]
    second = [0.2283737063407898, 0.7439446449279785, 0.9619377255439758]
    assert scores.flatten().tolist() == pytest.approx([*first, *second], abs=1e-6)
    assert normal_loss(predicted.double(), true.double(), is_known).item() == pytest.approx(
        -0.4094644279611207, abs=1e-6
    )


def phrases() -> list[tuple[list[np.ndarray], list[list[np.ndarray]]]]:
    """Predicted masks of forty phrases, and those of three annotators each; of some phrases there are none."""
    found = []
    for number in range(40):
        random = np.random.default_rng(number)
        boxes = (random.random((4, 4)) * [24, 24, 16, 16] + [0, 0, 4, 4]).astype(int)
        boxes = boxes[: 0 if number % 4 == 0 else int(4 * random.random()) + 1]
        ends = []
        for _ in range(4):
            moved = boxes + (3 * random.random(boxes.shape)).astype(int)
            kept = moved[random.random(len(boxes)) > 0.2] if random.random() > 0.1 else [[2, 2, 9, 9]]
            ends.append([filled(*box) for box in kept])
        found.append((ends[0], ends[1:]))
    return found


def filled(row: int, col: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((48, 48), np.uint8, order="F")
    mask[row : row + height, col : col + width] = 1
    return mask


def test_concepts_of_sam3():
    """facebookresearch/sam3 at 99d02f2: `CGF1Evaluator` with three annotators, cgF1, positive micro F1, IL_MCC."""
    from pycocotools import mask as coco_mask

    sums = torch.stack(
        [
            concept_counts([*map(coco_mask.encode, own)], [[*map(coco_mask.encode, each)] for each in true])
            for own, true in phrases()
        ]
    ).sum(0)
    found = [float(score(sums)) for score in (concept_f1, positive_f1, image_correlation)]
    assert found == pytest.approx([0.4247027206797078, 0.45304674608175244, 0.937436863530789], abs=1e-6)
