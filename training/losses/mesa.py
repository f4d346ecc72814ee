"""Consistency of the student with its moving average on another crop (MESA)."""

from torch import Tensor
from torch.nn import functional as F

from modeling_radio.training.losses.alignment import Alignment
from modeling_radio.training.losses.features import comparable, mse_feature_loss


def mesa_losses(student: Tensor, average: Tensor, alignment: Alignment) -> Tensor:
    """Return the mean squared distance between normalized features of the student and of its moving average.

    Both get a layer norm without learned parameters and are compared where both crops show the image. The features are
    the backbone's, which has no final norm: the layer norm stands for it (our reading; the report does not say).

    Args:
        student: `(batch, C, rows, cols)`, features of the backbone.
        average: Same shape, features of the moving average on another crop, without gradients.
        alignment: Alignment with the average in place of a teacher.

    Returns:
        `(batch,)`, each at most 4: means over channels and over the overlap of the crops.

    Raises:
        ValueError: If the shapes differ.

    References:
        C-RADIOv4 tech report, Eq 2, https://arxiv.org/abs/2601.17237; MESA, https://arxiv.org/abs/2205.14083
    """
    student, average = (
        F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)  # over the channels of each token
        for features in comparable(student, average)
    )
    return mse_feature_loss(*alignment.apply(student, average))
