"""PHI-S: dense targets of unit variance in each channel, by one rotation and one scale.

The dense heads follow its refits: see `modeling_radio.training.student.refits`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from modeling_radio.core.ranks import copy_from_first_rank, sum_over_ranks
from modeling_radio.training.targets.hadamard import hadamard_matrix, hadamard_order_is_known


MIN_VARIANCE = 1e-12
"""Floor of a variance that is divided by: a teacher with constant features gives zeros, not NaN. Our choice."""

CHANNELS_PER_PRODUCT = 128
"""Rows of a moment matrix that are computed at once: enough for a fast product (our choice)."""


class AffineMap(NamedTuple):
    """`matrix @ y + offset` for every token y.

    Attributes:
        matrix: `(C, C)` float64.
        offset: `(C,)` float64.
    """

    matrix: Tensor
    offset: Tensor

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return the weight `(n * C, inputs)` of a linear layer that is followed by the map, in float64."""
        return map_rows(self.matrix, weight)

    def of_bias(self, bias: Tensor) -> Tensor:
        """Return the bias `(n * C,)` of a linear layer that is followed by the map, in float64."""
        offset = self.offset.to(bias.device)
        return map_rows(self.matrix, bias) + offset.repeat(len(bias) // len(offset))


def map_rows(matrix: Tensor, values: Tensor) -> Tensor:
    """Return `matrix @ y` for every C rows y of `values`, `(n * C, ...)`, in float64."""
    parts = values.double().unflatten(0, (-1, len(matrix)))
    return torch.einsum("ij,nj...->ni...", matrix.to(values.device), parts).flatten(0, 1)


class FeatureStandardizer(nn.Module):
    """An affine map of a teacher's features, fitted to their running mean and covariance.

    `standardize` computes `matrix @ (y - mean)` for every token, `invert` undoes it. Subclasses choose the matrix in
    `solve`. All state is in buffers: `state_dict` holds everything that a restart needs.

    Args:
        num_channels: Width C of the teacher's dense features.
    """

    count: Tensor
    total: Tensor
    outer_total: Tensor
    is_frozen: Tensor
    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    float_mean: Tensor
    float_matrix: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(num_channels, dtype=torch.float64))
        self.register_buffer("outer_total", torch.zeros(num_channels, num_channels, dtype=torch.float64))
        self._pending: Tensor | None = None  # this rank's [count, total, outer_total] since the last `end_step`
        self.register_buffer("is_frozen", torch.zeros((), dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(num_channels, dtype=torch.float64))
        self.register_buffer("matrix", torch.eye(num_channels, dtype=torch.float64))
        self.register_buffer("inverse", torch.eye(num_channels, dtype=torch.float64))
        self.register_buffer("float_mean", self.mean.float(), persistent=False)
        self.register_buffer("float_matrix", self.matrix.float(), persistent=False)
        self.is_moving = True  # `not is_frozen`, known without waiting for a device
        self.register_load_state_dict_post_hook(lambda module, _: module._follow_state())

    def solve(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the `(C, C)` matrix for this covariance, and its inverse; float64."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, features: Tensor, shown: Tensor | None = None) -> None:
        """Keep the moments of a batch of teacher features; `end_step` adds them to the running ones.

        Args:
            features: `(batch, C, rows, cols)`, this rank's part.
            shown: `(batch, rows, cols)` bool, the tokens that count; None for all.

        Raises:
            RuntimeError: If the statistics are frozen.
        """
        if not self.is_moving:
            raise RuntimeError("`update` of frozen statistics: they must not change any more.")
        tokens = features.movedim(1, -1).flatten(0, -2).double()  # (batch, C, rows, cols) -> (tokens, C)
        count = tokens.new_full((1,), len(tokens))
        if shown is not None:
            tokens, count = torch.where(shown.flatten()[:, None], tokens, 0.0), shown.sum()[None].double()
        moments = torch.cat([count, tokens.sum(0), _outer_total(tokens).flatten()])
        self._pending = moments if self._pending is None else self._pending + moments

    @torch.no_grad()
    def end_step(self) -> None:
        """Add the moments of all ranks since the last call: one exchange, however many batches each rank had.

        A step with a non-finite value is left out on every rank: it does not train either.
        """
        moments = self.total.new_zeros(1 + self.num_channels + self.num_channels**2)
        if self._pending is not None:
            moments, self._pending = self._pending, None
        moments = sum_over_ranks(moments)
        moments = torch.where(torch.isfinite(moments).all(), moments, 0.0)
        self.count += moments[0]
        self.total += moments[1 : 1 + self.num_channels]
        self.outer_total += moments[1 + self.num_channels :].view_as(self.outer_total)

    @torch.no_grad()
    def refit(self) -> AffineMap:
        """Recompute the map from the moments so far; rank 0 decides, since eigenvectors differ between machines.

        Returns:
            The map from features standardized before to the same ones standardized now. It may be any rotation, since
            axes change their order and sign from one fit to the next.

        Raises:
            ValueError: If there are no samples yet.
        """
        if not self.count:
            raise ValueError("`refit` needs at least one batch of finite teacher features; none was given to `update`.")
        mean_before, inverse_before = self.mean.clone(), self.inverse.clone()
        self.mean.copy_(self.total / self.count)
        matrix, inverse = self.solve(self.covariance)
        self.matrix.copy_(matrix)
        self.inverse.copy_(inverse)
        for tensor in (self.mean, self.matrix, self.inverse):
            copy_from_first_rank(tensor)
        self._cast()
        return AffineMap(self.matrix @ inverse_before, self.matrix @ (mean_before - self.mean))

    @property
    def covariance(self) -> Tensor:
        """Covariance of the moments so far, about the mean of the last `refit`, `(C, C)` float64."""
        covariance = self.outer_total / self.count - torch.outer(self.mean, self.mean)
        return (covariance + covariance.T) / 2

    def freeze(self) -> None:
        """End the estimation: the target must not move for the rest of the run."""
        self.is_frozen.fill_(True)
        self.is_moving = False

    def standardize(self, features: Tensor) -> Tensor:
        """Return `(batch, C, rows, cols)` features with zero mean and unit variance, float32 (Eq 26).

        The product is in float32, not in TF32 (our choice). TF32 would be off by 3e-4 of a deviation, float32 is by
        4e-7, and TF32 would save less than 1 % of a step of C-RADIOv4-H. Both errors are small beside teachers in
        bfloat16, whose rounding is 9e-3 to 2e-2. (Emulated: 384 to 1,536 channels with variances of a power law.)
        """
        return _map_tokens(features, lambda tokens: (tokens - self.float_mean) @ self.float_matrix.T)

    def invert(self, features: Tensor) -> Tensor:
        """Return standardized features `(batch, C, rows, cols)` in the teacher's own space, float32 (Eq 50)."""
        inverse, mean = self.inverse.float(), self.mean.float()
        return _map_tokens(features, lambda tokens: tokens @ inverse.T + mean)

    def fold_into_linear(self, linear: nn.Linear) -> None:
        """Change a layer in place so that its output becomes `standardize` of its former output.

        Args:
            linear: The adaptor's last layer, with bias; C outputs, or a multiple of C if the head upsamples, with the
                channels of one fine token side by side.

        Raises:
            ValueError: If the layer has no bias or another number of outputs.
        """
        self._fold(linear, AffineMap(self.matrix, -self.matrix @ self.mean))

    def fold_inverse_into_linear(self, linear: nn.Linear) -> None:
        """Change a layer in place so that its output becomes `invert` of its former output (PHI-S A.6).

        Arguments and errors as `fold_into_linear`.
        """
        self._fold(linear, AffineMap(self.inverse, self.mean))

    def _follow_state(self) -> None:
        """Derive the rest from buffers that were loaded."""
        self.is_moving = not self.is_frozen
        self._cast()

    def _cast(self) -> None:
        """Keep what `standardize` needs at every step in float32."""
        self.float_mean.copy_(self.mean)
        self.float_matrix.copy_(self.matrix)

    @torch.no_grad()
    def _fold(self, linear: nn.Linear, change: AffineMap) -> None:
        if linear.out_features % self.num_channels or linear.bias is None:
            raise ValueError(
                f"`linear` must have a bias and a multiple of {self.num_channels} outputs to take a standardization or "
                f"its inverse, got {linear}."
            )
        linear.weight.copy_(change.of_weight(linear.weight))
        linear.bias.copy_(change.of_bias(linear.bias))


class PhiS(FeatureStandardizer):
    """PHI-S: the principal axes, spread evenly over the channels by a Hadamard rotation, and one scale for all.

    Every channel of the output has variance 1, and errors in all directions weigh the same. The map is orthogonal up
    to the scale, so rank-deficient features are no problem. If no Hadamard matrix of the width is known
    (`hadamard_order_is_known`), `equalizing_rotation` takes its place.
    """

    def solve(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return `H U^T / phi` and `phi U H^T` (Eq 22, 25, 26, 50)."""
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        eigenvalues = eigenvalues.clamp(min=0)  # rounding
        largest = eigenvectors.gather(0, eigenvectors.abs().argmax(0, keepdim=True))
        eigenvectors = eigenvectors * torch.where(largest < 0, -1.0, 1.0)  # a fixed sign: the largest entry is positive
        scale = eigenvalues.mean().clamp(min=MIN_VARIANCE).sqrt()
        rotation = spreading_rotation(eigenvalues) @ eigenvectors.T
        return rotation / scale, rotation.T * scale

    @property
    def scale(self) -> float:
        """The root mean variance of the teacher's channels: phi of Eq 22."""
        return float(self.inverse.square().sum().div(self.num_channels).sqrt())


class ChannelStandardizer(FeatureStandardizer):
    """Each channel divided by its own standard deviation ("standardize" in PHI-S, table 1)."""

    def solve(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        deviation = covariance.diagonal().clamp(min=MIN_VARIANCE).sqrt()
        return torch.diag(1 / deviation), torch.diag(deviation)


class GlobalStandardizer(FeatureStandardizer):
    """All channels divided by one number, without a rotation ("global std" in PHI-S, table 1)."""

    def solve(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        deviation = covariance.diagonal().mean().clamp(min=MIN_VARIANCE).sqrt()
        identity = torch.eye(self.num_channels, dtype=covariance.dtype, device=covariance.device)
        return identity / deviation, identity * deviation


class NoStandardizer(FeatureStandardizer):
    """Only the mean is subtracted: teachers whose features are large count more, and their large channels most."""

    def solve(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        identity = torch.eye(self.num_channels, dtype=covariance.dtype, device=covariance.device)
        return identity, identity


STANDARDIZERS: dict[str, type[FeatureStandardizer]] = {
    "phi_s": PhiS,
    "channel": ChannelStandardizer,
    "global": GlobalStandardizer,
    "none": NoStandardizer,
}


def spreading_rotation(eigenvalues: Tensor) -> Tensor:
    """Return a rotation H such that `H diag(eigenvalues) H^T` has a constant diagonal.

    Args:
        eigenvalues: `(C,)` float64.

    Returns:
        `(C, C)` float64: the normalized Hadamard matrix if one is known, else `equalizing_rotation`.
    """
    num_channels = len(eigenvalues)
    if not hadamard_order_is_known(num_channels):
        return equalizing_rotation(eigenvalues)
    matrix = torch.from_numpy(hadamard_matrix(num_channels).astype(np.float64))
    return matrix.to(eigenvalues.device) / num_channels**0.5


def equalizing_rotation(eigenvalues: Tensor) -> Tensor:
    """Return a rotation that gives these variances a constant diagonal, for widths without a Hadamard matrix.

    C - 1 plane rotations: each pairs a variance below the mean with one above it, sets the first to the mean exactly
    and leaves the remainder to the second. Unlike a Hadamard matrix it depends on the eigenvalues and does not mix all
    axes into every channel. Unit variance in each channel and the isotropic scale hold all the same. Our choice.

    Args:
        eigenvalues: `(C,)` float64.

    Returns:
        `(C, C)` float64 orthogonal matrix.

    References:
        Chan and Li, "Diagonal elements and eigenvalues of a real symmetric matrix", 1983.
    """
    mean = eigenvalues.mean().item()
    rotation = torch.eye(len(eigenvalues), dtype=torch.float64)
    below = [(value, index) for index, value in enumerate(eigenvalues.tolist()) if value < mean]
    above = [(value, index) for index, value in enumerate(eigenvalues.tolist()) if value > mean]
    while below and above:
        (low, i), (high, j) = below.pop(), above.pop()
        cosine = ((high - mean) / (high - low)) ** 0.5
        sine = ((mean - low) / (high - low)) ** 0.5
        rotation[[i, j]] = torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64) @ rotation[[i, j]]
        remainder = low + high - mean
        if remainder < mean:
            below.append((remainder, j))
        elif remainder > mean:
            above.append((remainder, j))
    return rotation.to(eigenvalues.device)


def _map_tokens(features: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        tokens = features.movedim(1, -1).float().contiguous()  # else one small product for each row of each image
        return function(tokens).movedim(-1, 1)


def _outer_total(tokens: Tensor) -> Tensor:
    """Return `tokens.T @ tokens` of `(tokens, C)` float64; the matrix is symmetric, and each product computed once.

    Products of float32 would be faster, but then sums depend on how a batch is split. Eigenvectors enlarge such
    differences: one process and two would differ.
    """
    num_channels = tokens.shape[1]
    total = tokens.new_empty(num_channels, num_channels)
    for start in range(0, num_channels, CHANNELS_PER_PRODUCT):
        own = slice(start, start + CHANNELS_PER_PRODUCT)
        rows = tokens[:, own].T @ tokens[:, start:]
        total[own, start:], total[start:, own] = rows, rows.T
    return total
