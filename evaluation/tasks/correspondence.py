"""Task on pairs of images: keypoints and 3D points of one found in the other, by Probe3D's protocol."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.core.timing import ProgressBar
from modeling_radio.evaluation.data import Examples, ImagePair
from modeling_radio.evaluation.features import StoredFeatures
from modeling_radio.evaluation.tasks.base import DENSE, Evaluation, Task
from modeling_radio.metrics.correspondence import keypoint_errors, matched_points
from modeling_radio.metrics.results import Measurement


PCK_SHARE = 0.10
"""Share of the object's box within which a keypoint counts as found; as in Probe3D."""
NUM_MATCHES = 1000
"""Clearest matches of each pair of NAVI; as in Probe3D."""
POINT_SCALE = 0.25
"""Side of the grid of 3D points as a share of the image's; as in Probe3D."""
RECALL_METERS = (0.01, 0.02, 0.05)
"""Distances within which a 3D point counts as found; as in Probe3D."""


@torch.no_grad()
def measure_keypoints(evaluation: Evaluation) -> list[Measurement]:
    """Measure how often the points of one image are found in the other, from the cosines of dense features.

    Keypoints (SPair-71k) give the percentage of correct keypoints within 10 % of the object's box, the mean over
    classes. 3D points (NAVI) give the share of the clearest matches that lie within 1, 2 and 5 cm.

    References:
        Probe3D, https://arxiv.org/abs/2404.08636.
    """
    examples = evaluation.examples("pairs")
    assert examples.pairs is not None  # the part's kind says so
    sources = sources_of_pairs(examples, examples.pairs)
    features = evaluation.features("pairs", wanted=DENSE, size_px=evaluation.model.size_px)
    bar = ProgressBar(examples.pairs, desc="pairs", leave=False, disable=None)
    if examples.points is None:
        number = len(evaluation.part("pairs").class_names)
        sums = torch.stack([keypoint_sums(features, pair, number) for pair in bar])
        return [evaluation.of_sums("keypoints", f"PCK@{PCK_SHARE:.2f}", sums, mean_share, "pairs", sources)]
    shares = torch.stack([point_shares(features, examples, pair, evaluation.model.device) for pair in bar])
    return [
        evaluation.mean("keypoints", f"3D recall, {100 * meters:.0f} cm", scores, "pairs", sources)
        for meters, scores in zip(RECALL_METERS, shares.T, strict=True)
    ]


def sources_of_pairs(examples: Examples, pairs: Sequence[ImagePair]) -> Tensor:
    """Return the sources of both images of each pair, `(num_pairs, 2)`, or `(num_pairs,)` if they are always the same.

    Pairs of SPair-71k share images, those of NAVI objects.
    """
    own = torch.arange(len(examples)) if examples.groups is None else examples.groups
    ends = own[torch.tensor([[pair.source, pair.target] for pair in pairs])]
    return ends[:, 0] if torch.equal(ends[:, 0], ends[:, 1]) else ends


def keypoint_sums(features: StoredFeatures, pair: ImagePair, num_classes: int) -> Tensor:
    """Return found keypoints and keypoints of a pair by class, `(2 * num_classes,)`."""
    assert pair.source_points is not None
    assert pair.target_points is not None
    sums = torch.zeros(2, num_classes, dtype=torch.float64)
    if len(pair.source_points):
        maps = features.map(pair.source), features.map(pair.target)
        errors = keypoint_errors(*maps, pair.source_points, pair.target_points)
        sums[:, pair.category] = torch.stack([(errors / pair.unit < PCK_SHARE).sum(), torch.tensor(len(errors))])
    return sums.flatten()


def mean_share(sums: Tensor) -> Tensor:
    """Return the mean over classes of found keypoints by keypoints, `(...)`, of sums `(..., 2 * num_classes)`."""
    found, number = sums.unflatten(-1, (2, -1)).unbind(-2)
    return (found / number).nanmean(-1)


def point_shares(
    features: StoredFeatures,
    examples: Examples,
    pair: ImagePair,
    device: torch.device,
    limits: Sequence[float] = RECALL_METERS,
) -> Tensor:
    """Return the shares of the clearest matches of a pair that lie within each distance, `(num_limits,)`."""
    assert examples.points is not None
    assert pair.move is not None
    ends = pair.source, pair.target
    first, second = (features.map(end).to(device) for end in ends)
    points, others = (F.interpolate(examples.points[end][None], scale_factor=POINT_SCALE)[0].to(device) for end in ends)
    source, target = matched_points(first, second, points, others, NUM_MATCHES)
    move = pair.move.to(source)
    errors = (source @ move[:3, :3].T + move[:3, 3] - target).norm(dim=1)
    return torch.stack([(errors < limit).double().mean() for limit in limits]).cpu()


KEYPOINTS = Task(measure_keypoints, "pairs", of_baselines=True)
