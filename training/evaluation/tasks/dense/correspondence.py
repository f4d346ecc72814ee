"""Whether patches are found again in another view of the same image."""

from __future__ import annotations

import torch

from model_cards.results import Measurement
from training.evaluation.data.crops import CroppedViews
from training.evaluation.features import Wanted
from training.evaluation.metrics.correspondence import correspondence_distances
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
