"""The task on pairs: hits by class, known 3D points, and presets to the end on folders of the sets' layout."""

import pytest
import torch

from modeling_radio.evaluation.data import Examples, ImagePair, Stacked
from modeling_radio.evaluation.data_tables import open_data
from modeling_radio.evaluation.features import StoredFeatures
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.settings import EvaluationSettings
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.correspondence import (
    keypoint_sums,
    mean_share,
    measure_keypoints,
    point_shares,
    sources_of_pairs,
)


def stored(*maps: torch.Tensor) -> StoredFeatures:
    tokens = torch.cat([each.flatten(1).T for each in maps])
    return StoredFeatures(
        [{"features": tokens, "grids": torch.tensor([[*each.shape[1:]] for each in maps])}], len(maps)
    )


def test_the_share_of_found_keypoints_is_the_mean_over_classes():
    features = stored(*[torch.eye(16).reshape(16, 4, 4)] * 2)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    true = torch.tensor([[0.0, 0.0], [0.75, 0.0]])
    shifted = true + torch.tensor([0.06, 0.0])
    first = keypoint_sums(features, ImagePair(0, 1, corners, shifted, unit=0.5, category=0), 3)  # 0.12 of the box away
    second = keypoint_sums(features, ImagePair(0, 1, corners, shifted, unit=1.0, category=1), 3)
    third = keypoint_sums(features, ImagePair(0, 1, corners[:1], true[:1], unit=0.1, category=0), 3)
    none = keypoint_sums(features, ImagePair(0, 1, corners[:0], true[:0], category=2), 3)
    sums = torch.stack([first, second, third, none]).sum(0)
    assert sums.tolist() == [1, 2, 0, 3, 2, 0]
    assert mean_share(sums) == pytest.approx((1 / 3 + 1) / 2)  # no keypoint of the third class


def test_3d_points_of_a_moved_object():
    maps = torch.eye(64).reshape(64, 8, 8)
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    points = torch.stack([xs, ys, torch.ones_like(xs)])
    move = torch.eye(4)
    move[0, 3] = 0.03
    images = Stacked(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    examples = Examples(images, "x", points=[points, points])
    shares = [
        point_shares(stored(maps, maps), examples, ImagePair(0, 1, move=each), torch.device("cpu")).tolist()
        for each in (torch.eye(4), move)
    ]
    assert shares == [[1, 1, 1], [0, 0, 1]]


def test_pairs_share_images_or_objects():
    images = Stacked(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    pairs = [ImagePair(0, 1), ImagePair(2, 1)]
    assert sources_of_pairs(Examples(images, "x"), pairs).tolist() == [[0, 1], [2, 1]]
    one, two = torch.tensor([5, 5, 5]), torch.tensor([5, 5, 7])
    assert sources_of_pairs(Examples(images, "x", groups=one), pairs).tolist() == [5, 5]
    assert sources_of_pairs(Examples(images, "x", groups=two), pairs).tolist() == [[5, 5], [7, 5]]


@pytest.mark.parametrize("preset", ["spair", "navi"])
def test_presets_run_to_the_end(preset, reference, request, tmp_path):
    folder = str(request.getfixturevalue(f"{preset}_folder"))
    settings = EvaluationSettings(checkpoint=tmp_path, data=folder, preset=preset, size=64)
    data = open_data(folder, settings, size_px=64)
    evaluation = Evaluation(RadioFeatures(reference, size_px=64), data, settings)
    measured = {each.metric: each for each in measure_keypoints(evaluation)}
    names = {"spair": ["PCK@0.10"], "navi": ["3D recall, 1 cm", "3D recall, 2 cm", "3D recall, 5 cm"]}
    assert list(measured) == names[preset]
    assert all(0 <= each.value <= 1 for each in measured.values())
