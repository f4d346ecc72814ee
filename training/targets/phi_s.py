"""PHI-S: dense targets of every teacher brought to unit variance in each channel by one rotation and one scale."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from core.ranks import copy_from_first_rank, sum_over_ranks


def hadamard_order_is_known(order: int) -> bool:
    """Return whether `hadamard_matrix` can build this order.

    No Hadamard matrix exists for odd orders above 1 or orders 2 mod 4 above 2; a few multiples of 4, the
    smallest of them 92, need constructions that this file leaves out.
    """
    return _plan(order) is not None


@functools.lru_cache(maxsize=4)
def hadamard_matrix(order: int) -> np.ndarray:
    """Return a Hadamard matrix H with `H @ H.T == order * I`.

    The largest Sylvester factor that leaves a known order is split off first: 1280 = S(64) x P1(20), as in
    PHI-S A.1.1.

    Args:
        order: Number of rows and columns.

    Returns:
        `(order, order)` int8 array of +1 and -1. It is cached: do not write to it.

    Raises:
        ValueError: If no construction of this file gives the order.

    References:
        Sylvester 1867; Paley 1933; PHI-S A.1, https://arxiv.org/abs/2410.01680
    """
    plan = _plan(order)
    if plan is None:
        raise ValueError(f"`order` {order} has no Sylvester, Paley or Kronecker construction of a Hadamard matrix.")
    matrix = _CONSTRUCTIONS[plan[0]](*plan[1:])
    matrix.setflags(write=False)
    return matrix


@functools.cache
def _plan(order: int) -> tuple | None:
    """Return the construction of an order as `(name, *arguments)`, or None."""
    if order > 0 and order & (order - 1) == 0:
        return ("sylvester", order)
    if order < 4 or order % 4:
        return None
    power = order & -order
    while power > 1:
        if _plan(order // power) is not None:
            return ("kronecker", power, order // power)
        power //= 2
    return _paley_plan(order) or _kronecker_plan(order)


def _paley_plan(order: int) -> tuple | None:
    if (order - 1) % 4 == 3 and _prime_power(order - 1):
        return ("paley_1", order - 1)
    if order % 2 == 0 and (order // 2 - 1) % 4 == 1 and _prime_power(order // 2 - 1):
        return ("paley_2", order // 2 - 1)
    return None


def _kronecker_plan(order: int) -> tuple | None:
    for left in range(4, int(order**0.5) + 1, 4):
        if order % left == 0 and _plan(left) and _plan(order // left):
            return ("kronecker", left, order // left)
    return None


def _sylvester(order: int) -> np.ndarray:
    matrix = np.ones((1, 1), dtype=np.int8)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _kronecker(left: int, right: int) -> np.ndarray:
    return np.kron(hadamard_matrix(left), hadamard_matrix(right))


def _paley_1(field_order: int) -> np.ndarray:
    """Return the matrix of order q + 1 for a prime power q = 3 mod 4."""
    return _bordered(field_order, corner_sign=-1) + np.eye(field_order + 1, dtype=np.int8)


def _paley_2(field_order: int) -> np.ndarray:
    """Return the matrix of order 2 (q + 1) for a prime power q = 1 mod 4."""
    conference = _bordered(field_order, corner_sign=1)
    plus = np.array([[1, 1], [1, -1]], dtype=np.int8)
    minus = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(conference, plus) + np.kron(np.eye(len(conference), dtype=np.int8), minus)


def _bordered(field_order: int, corner_sign: int) -> np.ndarray:
    """Return `[[0, 1], [sign, Q]]` with Paley's matrix `Q[a, b]` = quadratic character of a - b."""
    matrix = np.ones((field_order + 1, field_order + 1), dtype=np.int8)
    matrix[0, 0] = 0
    matrix[1:, 0] = corner_sign
    matrix[1:, 1:] = _quadratic_character(field_order)[_differences(field_order)]
    return matrix


_CONSTRUCTIONS = {"sylvester": _sylvester, "kronecker": _kronecker, "paley_1": _paley_1, "paley_2": _paley_2}


# An element of the field with p^k elements is written as the integer whose base-p digits are its coefficients.


def _prime_power(number: int) -> tuple[int, int] | None:
    """Return `(p, k)` with `p ** k == number` for a prime p, or None."""
    if number < 2:
        return None
    prime = next((d for d in range(2, int(number**0.5) + 1) if number % d == 0), number)
    exponent = 0
    while number % prime == 0:
        number //= prime
        exponent += 1
    return (prime, exponent) if number == 1 else None


def _field(order: int) -> tuple[int, int]:
    field = _prime_power(order)
    assert field is not None
    return field


def _differences(order: int) -> np.ndarray:
    """Return the `(order, order)` table of a - b in the field."""
    prime, degree = _field(order)
    elements = np.arange(order, dtype=np.int32)
    table = np.zeros((order, order), dtype=np.int32)
    for place in range(degree):
        digits = elements // prime**place % prime
        table += (digits[:, None] - digits[None, :]) % prime * prime**place
    return table


def _quadratic_character(order: int) -> np.ndarray:
    """Return chi: 0 at 0, +1 at non-zero squares, -1 elsewhere; even powers of a generator are the squares."""
    powers = _powers_of_generator(order)
    character = np.zeros(order, dtype=np.int8)
    character[powers[0::2]] = 1
    character[powers[1::2]] = -1
    return character


def _powers_of_generator(order: int) -> list[int]:
    """Return g^0, g^1, ... g^(order - 2) for a generator g of the field's multiplicative group.

    g is the residue of x modulo the first monic polynomial for which x generates everything (a primitive
    polynomial: finding it settles irreducibility too). In a prime field the polynomial is x - g.
    """
    prime, degree = _field(order)
    for low_coefficients in itertools.product(range(1, prime), *[range(prime)] * (degree - 1)):
        powers = _powers_of_x(prime, low_coefficients)
        if len(powers) == order - 1:
            return powers
    raise AssertionError(f"no primitive polynomial over GF({prime}) of degree {degree}")


def _powers_of_x(prime: int, low_coefficients: tuple[int, ...]) -> list[int]:
    """Return 1, x, x^2, ... modulo `x^k + low_coefficients` (the constant first, not 0), up to the return to 1."""
    degree = len(low_coefficients)
    one = [1] + [0] * (degree - 1)
    element, powers = one, []
    while not powers or element != one:
        powers.append(sum(digit * prime**place for place, digit in enumerate(element)))
        shifted = [0, *element[:-1]]
        element = [(digit - element[-1] * low) % prime for digit, low in zip(shifted, low_coefficients, strict=True)]
    return powers


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

    `standardize` computes `matrix @ (y - mean)` for every token, `invert` undoes it. Subclasses say in
    `solve` which matrix. All state is in buffers: `state_dict` holds everything that a restart needs.

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
        """Keep the moments of a batch of teacher features, for `end_step` to add to the running ones.

        Args:
            features: `(batch, C, rows, cols)`, this rank's part.
            shown: `(batch, rows, cols)` bool, which tokens count; None for all.

        Raises:
            RuntimeError: If the statistics are frozen.
        """
        if not self.is_moving:
            raise RuntimeError("`update` of frozen statistics: they must not change any more.")
        tokens = _tokens(features).double()
        count = tokens.new_full((1,), len(tokens))
        if shown is not None:
            tokens, count = torch.where(shown.flatten()[:, None], tokens, 0.0), shown.sum()[None].double()
        moments = torch.cat([count, tokens.sum(0), _outer_total(tokens).flatten()])
        self._pending = moments if self._pending is None else self._pending + moments

    @torch.no_grad()
    def end_step(self) -> None:
        """Add what `update` kept on all ranks since the last call: one exchange, however many batches each rank had.

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
            What leads from features standardized before to the same ones standardized now. Axes change their order and
            sign from one fit to the next, so that it may be any rotation.

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

        The product is one of float32 numbers, not of TF32 ones (our choice): these would be off by 3e-4 of a deviation
        where float32 is by 4e-7, and save less than 1 % of a step of C-RADIOv4-H. Both are little beside answers in
        bfloat16, whose rounding is 9e-3 to 2e-2. (Emulated: 384 to 1,536 channels with variances of a power law.)
        """
        return _map_tokens(features, lambda tokens: (tokens - self.float_mean) @ self.float_matrix.T)

    def invert(self, features: Tensor) -> Tensor:
        """Return standardized features `(batch, C, rows, cols)` in the teacher's own space, float32 (Eq 50)."""
        inverse, mean = self.inverse.float(), self.mean.float()
        return _map_tokens(features, lambda tokens: tokens @ inverse.T + mean)

    def fold_inverse_into_linear(self, linear: nn.Linear) -> None:
        """Change a layer in place so that its output becomes `invert` of its former output (PHI-S A.6).

        Arguments and errors as `fold_into_linear`.
        """
        self._fold(linear, AffineMap(self.inverse, self.mean))

    def fold_into_linear(self, linear: nn.Linear) -> None:
        """Change a layer in place so that its output becomes `standardize` of its former output.

        Args:
            linear: The adaptor's last layer, with bias; C outputs, or a multiple of C where the head
                upsamples, the channels of one fine token side by side.

        Raises:
            ValueError: If the layer has no bias or another number of outputs.
        """
        self._fold(linear, AffineMap(self.matrix, -self.matrix @ self.mean))

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
        """Follow a layer by a map of every `num_channels` of its outputs."""
        if linear.out_features % self.num_channels or linear.bias is None:
            raise ValueError(
                f"`linear` must have a bias and a multiple of {self.num_channels} outputs to take a standardization or "
                f"its inverse, got {linear}."
            )
        linear.weight.copy_(change.of_weight(linear.weight))
        linear.bias.copy_(change.of_bias(linear.bias))


class PhiS(FeatureStandardizer):
    """PHI-S: the principal axes, spread evenly over the channels by a Hadamard rotation, and one scale for all.

    Every channel of the output has variance 1, and errors in all directions weigh the same. The map is
    orthogonal up to the scale, so rank-deficient features are no problem. Where no Hadamard matrix of the
    width is known (`hadamard_order_is_known`), `equalizing_rotation` takes its place.
    """

    def solve(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return `H U^T / phi` and `phi U H^T` (Eq 22, 25, 26, 50)."""
        eigenvalues, eigenvectors = _principal_axes(covariance)
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
    """Only the mean is taken off: teachers whose features are large count more, and their large channels most."""

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
        eigenvalues: `(C,)` float64 variances along the principal axes.

    Returns:
        `(C, C)` float64: the normalized Hadamard matrix where one is known, else `equalizing_rotation`.
    """
    num_channels = len(eigenvalues)
    if not hadamard_order_is_known(num_channels):
        return equalizing_rotation(eigenvalues)
    matrix = torch.from_numpy(hadamard_matrix(num_channels).astype(np.float64))
    return matrix.to(eigenvalues.device) / num_channels**0.5


def equalizing_rotation(eigenvalues: Tensor) -> Tensor:
    """Return a rotation that gives these variances a constant diagonal, for widths without a Hadamard matrix.

    C - 1 plane rotations: each pairs a variance below the mean with one above it, sets the first to the mean
    exactly and leaves the remainder to the second. Unlike a Hadamard matrix it depends on the eigenvalues and
    does not mix all axes into every channel; unit variance in each channel and the isotropic scale hold all
    the same. Our choice.

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


def _principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (rounding below zero clamped) and eigenvectors with a fixed sign: largest entry positive."""
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    largest = eigenvectors.gather(0, eigenvectors.abs().argmax(0, keepdim=True))
    return eigenvalues.clamp(min=0), eigenvectors * torch.where(largest < 0, -1.0, 1.0)


def _outer_total(tokens: Tensor) -> Tensor:
    """Return `tokens.T @ tokens` of `(tokens, C)` float64, each product computed once: the matrix is symmetric.

    Products of float32 would be faster still, but then sums depend on how a batch is split, and eigenvectors, which
    enlarge such differences, would differ between one process and two.
    """
    num_channels = tokens.shape[1]
    total = tokens.new_empty(num_channels, num_channels)
    for start in range(0, num_channels, CHANNELS_PER_PRODUCT):
        own = slice(start, start + CHANNELS_PER_PRODUCT)
        rows = tokens[:, own].T @ tokens[:, start:]
        total[own, start:], total[start:, own] = rows, rows.T
    return total


def _tokens(features: Tensor) -> Tensor:
    return features.movedim(1, -1).flatten(0, -2)  # (batch, C, rows, cols) -> (tokens, C)


def _map_tokens(features: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        tokens = features.movedim(1, -1).float().contiguous()  # else one small product for each row of each image
        return function(tokens).movedim(-1, 1)
