"""Errors of depth maps."""

import torch
from torch import Tensor


DELTA = 1.25


class DepthScore:
    """Errors over all pixels with a depth.

    References:
        abs_rel, rmse and delta1 as in Eigen et al., 2014, https://arxiv.org/abs/1406.2283.
    """

    def __init__(self) -> None:
        self.reset()

    def update(self, predictions: Tensor, references: Tensor) -> None:
        """Add a batch of depths in meters, `(batch, height, width)`."""
        self.sums += depth_sums(predictions, references)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean relative error, the root mean square error in meters and the share within a factor 1.25.

        All are NaN where no pixel has a depth.
        """
        return depth_errors(self.sums)

    def reset(self) -> None:
        """Reset the metric."""
        self.sums = torch.zeros(4, dtype=torch.float64)


def depth_sums(predictions: Tensor, references: Tensor) -> Tensor:
    """Return what depth maps add to the errors, `(4,)`: relative and square errors, pixels within a factor, pixels.

    Args:
        predictions: Meters, of any shape.
        references: Meters, of the same shape; 0 where it is not known.
    """
    valid = references > 0
    predicted, true = predictions[valid].double(), references[valid].double()
    ratio = torch.maximum(predicted / true, true / predicted.clamp(min=1e-6))
    parts = [((predicted - true).abs() / true).sum(), (predicted - true).square().sum(), (ratio < DELTA).sum()]
    return torch.stack([*parts, valid.sum()]).double().cpu()


def depth_errors(sums: Tensor) -> dict[str, Tensor]:
    """Return `abs_rel`, `rmse` and `delta1`, `(...)`, of sums of `depth_sums`, `(..., 4)`."""
    relative, square, within, count = sums.unbind(-1)
    return {"abs_rel": relative / count, "rmse": (square / count).sqrt(), "delta1": within / count}
