"""Whether patches are found again in another view of the same image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model_cards.results import Measurement
from training.evaluation.data.crops import CroppedViews
from training.evaluation.features import Wanted
from training.evaluation.tasks.base import Evaluation


NUM_CROPS = 4
"""Our choice: views of each image."""


def measure_patch_correspondence(evaluation: Evaluation) -> list[Measurement]:
    """Measure how often the patch of an image that is most like one of a crop lies where that one does.

    Crops are zoomed by up to two and nothing else differs: the probe for data without annotated points. A size is
    given, so that models see views whole: distances would be wrong where a preprocessing cuts off their borders.
    """
    examples, seed = evaluation.examples("photographs"), evaluation.settings.random_seed
    views = CroppedViews(examples.images, NUM_CROPS, seed)
    features = evaluation.store.extract(
        evaluation.model,
        views,
        f"{examples.picture_fingerprint} crops {NUM_CROPS} {seed}",
        Wanted(dense=True),
        size_px=evaluation.model.size_px,
        description="crops",
    )
    near, close = [], []
    for image in range(len(examples)):
        whole, *crops = views.views_of(image)
        distances = torch.cat(
            [correspondence_distances(features.map(whole), features.map(view), *views.box(view)) for view in crops]
        )
        near.append((distances <= 1).double().mean())
        close.append((distances <= 2).double().mean())
    return [
        evaluation.mean("patch_correspondence", f"within {name}", torch.stack(scores), "photographs")
        for name, scores in (("1 patch", near), ("2 patches", close))
    ]


def correspondence_distances(features: Tensor, crop: Tensor, top: float, left: float, side: float) -> Tensor:
    """Return how far the most alike patch of the whole image is from the right place, for each patch of a crop.

    Args:
        features: Of the whole square image, `(dim, rows, cols)`.
        crop: Of the crop, `(dim, crop_rows, crop_cols)`.
        top: Upper edge of the crop in shares of the image.
        left: Its left edge.
        side: Its side.

    Returns:
        Distances in patches of the whole image, the larger of rows and columns, `(crop_rows * crop_cols,)`.
    """
    rows, cols = features.shape[1:]
    vectors = F.normalize(crop.flatten(1), dim=0).T @ F.normalize(features.flatten(1), dim=0)
    found = vectors.argmax(dim=1)
    found_places = torch.stack([found // cols, found % cols], dim=1) + 0.5  # centers of patches
    true_rows = (top + _centers(crop.shape[1]) * side) * rows
    true_cols = (left + _centers(crop.shape[2]) * side) * cols
    true_places = torch.stack(torch.meshgrid(true_rows, true_cols, indexing="ij"), dim=-1).flatten(0, 1)
    return (found_places - true_places).abs().amax(dim=1)


def _centers(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count
