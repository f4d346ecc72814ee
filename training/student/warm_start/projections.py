"""First weights of the projections from several levels of a network with weights to the width of the features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modeling_radio import RadioModel
from modeling_radio.core.ranks import copy_from_first_rank, sum_over_ranks
from modeling_radio.core.seeds import make_generator
from modeling_radio.training.student.warm_start.radio import SEED
from modeling_radio.wrapped_radio import WrappedTrunk, read_maps


FINER_SHARE = 0.5
"""Length of a finer level's part of a summary, as a share of that of the final output. Our choice: of
EfficientNet-Lite0's two levels at 128 px it gives the best kNN over seven sets (docs/explanation/demo.md)."""


class PrincipalProjections:
    """Projections by which each level has channels of its own: its principal components, rotated at random.

    In channels of its own the finer level stays legible beside a longer coarse one, and principal components keep
    distances between images. The rotation gives all channels of a level equal variance, so that a probe that normalizes
    them does not enlarge the smallest components. docs/explanation/demo.md compares this with random projections.

    Args:
        student: With a network of a library; only `fit` changes it.
    """

    def __init__(self, student: RadioModel) -> None:
        self.student, self.trunk = student, student.radio_model.model
        assert isinstance(self.trunk, WrappedTrunk)
        device = next(self.trunk.parameters()).device
        self.moments = [torch.zeros(n, n, dtype=torch.float64, device=device) for n in self.trunk.wrapping.widths]

    @torch.no_grad()
    def update(self, groups: Sequence[Tensor]) -> None:
        """Take in the levels' means over each image.

        Args:
            groups: Images in [0, 1], those of one size together.
        """
        was_training = self.trunk.training
        self.trunk.eval()
        for pixels in groups:
            _, maps = read_maps(
                self.trunk.wrapping, self.trunk.network, self.student.radio_model.input_conditioner(pixels)
            )
            for index, each in enumerate(maps):
                means = each.mean(dim=(2, 3)).double()
                self.moments[index] += means.T @ means
        self.trunk.train(was_training)

    @torch.no_grad()
    def fit(self) -> None:
        """Set the projections; all ranks take part."""
        moments = [sum_over_ranks(each) for each in self.moments]
        lengths = [each.trace().sqrt() for each in moments]
        free, start = self.student.config.hidden_size, 0
        for level, (moment, projection) in enumerate(zip(moments, self.trunk.projections, strict=True)):
            num_left = len(moments) - level
            rows = free if num_left == 1 else min(len(moment), free // num_left)
            components = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :rows]
            rotation = torch.empty(rows, components.shape[1])
            nn.init.orthogonal_(rotation, generator=make_generator(SEED, "projections", level))
            share = 1.0 if num_left == 1 else FINER_SHARE * lengths[-1] / lengths[level]
            projection.weight.zero_()
            projection.weight[start : start + rows, :, 0, 0] = share * (rotation.to(components) @ components.T)
            copy_from_first_rank(projection.weight)  # eigenvectors differ between machines
            free, start = free - rows, start + rows
