"""Consistency of the student with its moving average on another crop (MESA)."""

from torch import Tensor
from torch.nn import functional as F

from training.losses.alignment import align_to_teacher
from training.losses.features import check_same_shape, mse_feature_loss


def mesa_losses(student: Tensor, average: Tensor, shift: Tensor, extent: Tensor | None = None) -> Tensor:
    """Return the mean squared distance of the student's normalized features to its moving average's on another crop.

    Layer norm without learned parameters on both, then compared where both crops show the same. The features are the
    backbone's: it has no final norm, which is what the layer norm is for (our reading; the report does not say).

    Args:
        student: `(batch, C, rows, cols)`, features of the backbone.
        average: Same shape, those of the moving average, without gradients.
        shift: `(batch, 2)` rows and columns in patches: the average's crop minus the student's.
        extent: What of the student's crop is image, as of `align_to_teacher`.

    Returns:
        `(batch,)`, each at most 4: means over channels and the image's overlap.

    Raises:
        ValueError: If the shapes differ.

    References:
        C-RADIOv4 tech report, Eq 2, https://arxiv.org/abs/2601.17237; MESA, https://arxiv.org/abs/2205.14083
    """
    check_same_shape(student, average)
    maps = align_to_teacher(_normalize_tokens(student), _normalize_tokens(average), shift, extent=extent)
    return mse_feature_loss(*maps)


def _normalize_tokens(features: Tensor) -> Tensor:
    """Return `(batch, C, rows, cols)` features with mean 0 and variance 1 over the channels of every token."""
    return F.layer_norm(features.float().movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
