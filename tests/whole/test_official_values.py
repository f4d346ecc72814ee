"""Scores beside those of the benchmarks' own code, which was run once by hand on the same inputs on 2026-11-30.

Only its values are stored. Each test names repository, commit and functions.
"""

import numpy as np
import pytest
import torch

from modeling_radio.evaluation.data import Examples, ImagePair, Relevance, Stacked
from modeling_radio.evaluation.features import StoredFeatures
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.public_sets import PublicPart
from modeling_radio.evaluation.settings import TaskSettings
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.correspondence import keypoint_sums, mean_share, point_shares
from modeling_radio.evaluation.tasks.dpt_probes import depth_loss, depth_scores, normal_loss
from modeling_radio.evaluation.tasks.label_propagation import propagated, upsampled_labels
from modeling_radio.evaluation.tasks.landmark_retrieval import measure_landmark_retrieval
from modeling_radio.metrics.concept_f1 import (
    concept_counts,
    concept_f1,
    image_correlation,
    positive_f1,
)
from modeling_radio.metrics.dense import normal_scores
from modeling_radio.metrics.video import boundary_accuracy, region_similarity


def uniform(*shape: int, seed: int) -> torch.Tensor:
    """Numbers in [0, 1), float32."""
    return torch.from_numpy(np.random.default_rng(seed).random(shape)).float()


def masks(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A predicted and a true mask of blocks that touch the borders, bool `(96, 144)`."""
    true, noise = (
        uniform(12, 18, seed=seed + extra).repeat_interleave(8, 0).repeat_interleave(8, 1) for extra in (0, 9)
    )
    return true.roll((seed, 1), (0, 1)) > 0.6 - 0.1 * (noise > 0.7), true > 0.6


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, (0.7770419426048565, 0.934555422113807)),
        (1, (0.7392520612485277, 0.9318787475995672)),
        (2, (0.6431682090364725, 0.9183653471361782)),
        (3, (0.5498533724340176, 0.61651036239435)),
    ],
)
def test_davis(seed, expected):
    """davisvideochallenge/davis2017-evaluation at ac7c43f: `db_eval_iou` and `db_eval_boundary`."""
    pair = masks(seed)
    assert (region_similarity(*pair), boundary_accuracy(*pair)) == pytest.approx(expected, abs=1e-6)


def landmarks() -> Evaluation:
    """Six queries and forty images of noise; the last query has nothing hard to find."""
    queries, database = ((255 * uniform(count, 3, 16, 16, seed=count)).to(torch.uint8) for count in (6, 40))
    relevance = []
    for query in range(6):
        order = np.random.default_rng(query).permutation(40).tolist()
        relevance.append(Relevance(order[:4], [] if query == 5 else order[4:9], order[9:17]))
    test = Examples(Stacked(queries), "queries", relevance=relevance, groups=torch.arange(6))
    part = PublicPart("noise", ("landmarks",), test, "-", Examples(Stacked(database), "database"))
    return Evaluation(RawPixels(8, 16), part, TaskSettings())


def test_revisited_landmarks():
    """filipradenovic/revisitop at be39832: `compute_map` with the lists of `example_evaluate.py`, medium and hard."""
    measured = [each.value for each in measure_landmark_retrieval(landmarks())]
    assert measured == pytest.approx([0.2704678166940517, 0.12902400876046724], abs=1e-6)


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


def video() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Features of eleven frames, `(16, 15, 18)`, that resemble each other, and two objects in the first frame."""
    still = uniform(16, 15, 18, seed=20) - 0.5
    frames = [still + 0.8 * (uniform(16, 15, 18, seed=21 + number) - 0.5) for number in range(11)]
    first = torch.zeros(120, 144, dtype=torch.long)
    first[8:60, 16:80], first[70:110, 60:130] = 1, 2
    return frames, first


def test_label_propagation_of_dino():
    """facebookresearch/dino at 7c446df: `eval_video_tracking_davis` of `eval_video_segmentation.py`.

    Sums of pixels and of their indices for each object in the last frame.
    """
    frames, first = video()
    ids = upsampled_labels(propagated(frames, {0: first})[-1], 8, first.shape)
    found = [(int((ids == number).sum()), int((ids == number).nonzero().sum())) for number in (1, 2)]
    assert found == [(1725, 150810), (1318, 226717)]


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
