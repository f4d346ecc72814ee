"""Regularizers of weights: noise on them (DAMP) and a bound on their spectral norm."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from modeling_radio import RadioModel
from modeling_radio.nvidia.tensors import MIN_SCALE
from modeling_radio.training.student.foreign import linear_layers
from modeling_radio.training.student.parameters import count_stacked
from modeling_radio.training.student.sharding import first_row, local_parts, sum_over_shards


class DampLinear(nn.Linear):
    """A linear layer whose weight is multiplied by noise of mean 1 in training; `(..., inputs)` to `(..., outputs)`.

    Algorithm 1 of DAMP: the gradient is taken at the noisy weight and applied to the clean one, without the factor that
    the chain rule would add. The noise comes from torch's global generator: ranks with the same seed share it. In
    evaluation, and so in the moving average, it is a plain linear layer.

    Args:
        linear: The layer; its weight and bias keep their names.
        sigma: Standard deviation of the factors.
    """

    def __init__(self, linear: nn.Linear, sigma: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.sigma = sigma
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if self.training:
            with torch.no_grad():
                noise = weight * torch.randn_like(weight).mul_(self.sigma)
            weight = weight + noise
        return F.linear(input, weight, self.bias)


def add_damp(model: RadioModel, sigma: float) -> None:
    """Add noise to every linear layer of the trunk, in place; parameters and the keys of the state stay the same.

    The adaptors stay plain: C-RADIOv4 2.4 makes the student robust, and NVIDIA's inference code registers DAMP on the
    linear layers of the backbone, the patch projection included, before it builds any adaptor.

    Args:
        model: The student, before its weights are parametrized or distributed.
        sigma: Standard deviation of the factors; 0.1 to 0.25 in the paper's appendix F.
    """
    trunk = model.radio_model.model
    if model.config.is_foreign:
        linear_layers(model)  # refused without any
    for name, linear in [each for each in trunk.named_modules() if type(each[1]) is nn.Linear]:
        trunk.set_submodule(name, DampLinear(linear, sigma))


SCALE_SUFFIX = "parametrizations.weight.0.scale"  # end of the names of the scales
START_ITERATIONS = 15  # as in torch.nn.utils.parametrizations.spectral_norm


class SpectralScale(nn.Module):
    """Parametrization of one weight `(outputs, inputs)`; stacked matrices are scaled one by one.

    `update_spectral_norms` renews the estimate of the spectral norm once per step, outside of `forward`, so that
    accumulated parts and recomputed activations have the same weight. Both singular vectors are whole on every rank.

    Args:
        weight: The weight to start from: it stays as it is if its norm is above `MIN_SCALE`.
        num_chunks: Parts along the outputs, each with a norm and a scale of its own.
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, num_chunks: int = 1) -> None:
        super().__init__()
        outputs, inputs = len(weight) // num_chunks, weight.shape[1]
        start = torch.randn(num_chunks, outputs, generator=torch.Generator().manual_seed(0)).to(weight.device)
        self.register_buffer("left", F.normalize(start, dim=1))
        self.register_buffer("right", weight.new_zeros(num_chunks, inputs))
        for _ in range(START_ITERATIONS):
            _iterate([self], [weight])
        excess = (self._norms(weight.detach()) - MIN_SCALE).clamp(min=torch.finfo(weight.dtype).eps)
        # Two-dimensional, so that it decays like a matrix (PHI-S A.7); the inverse of softplus is log(exp(x) - 1).
        self.scale = nn.Parameter(excess.expm1().log().unsqueeze(1))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            factors = (F.softplus(self.scale.squeeze(1)) + MIN_SCALE) / self._norms(weight)
            return (self._chunks(weight) * factors[:, None, None]).flatten(0, 1)

    def toward_inputs(self, rows: Tensor, first: int) -> Tensor:
        """Return the product of `left` with this rank's rows of each chunk; `first` is the first row in the weight."""
        right = torch.zeros_like(self.right)
        for chunk, of_chunk, of_rows in self._overlaps(first, len(rows)):
            torch.mv(rows[of_rows].T, self.left[chunk, of_chunk], out=right[chunk])
        return right

    def toward_outputs(self, rows: Tensor, first: int) -> Tensor:
        """Return the product of this rank's rows of each chunk with `right`; outputs of other ranks' rows are 0."""
        left = torch.zeros_like(self.left)
        for chunk, of_chunk, of_rows in self._overlaps(first, len(rows)):
            torch.mv(rows[of_rows], self.right[chunk], out=left[chunk, of_chunk])
        return left

    def _overlaps(self, first: int, num_rows: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield each chunk with some of the given rows: its number, the rows' range in it, and among the given ones."""
        size = self.left.shape[1]
        for chunk in range(len(self.left)):
            start, end = max(first, chunk * size), min(first + num_rows, (chunk + 1) * size)
            if start < end:
                yield chunk, slice(start - chunk * size, end - chunk * size), slice(start - first, end - first)

    def _chunks(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (len(self.left), -1))

    def _norms(self, weight: Tensor) -> Tensor:
        """Return the spectral norm of each chunk, differentiable in the weight but not in the singular vectors."""
        norms = torch.einsum("co,coi,ci->c", self.left, self._chunks(weight), self.right)
        return norms.clamp(min=torch.finfo(weight.dtype).tiny)


def add_spectral_scales(model: RadioModel) -> None:
    """Reparametrize the linear layers of a student's blocks, or of its network, in place; weights keep their values.

    Each of `STACKED_MATRICES` has a scale of its own. The patch projection and the adaptors stay plain.
    """
    if model.config.is_foreign:
        layers = linear_layers(model)
    else:
        layers = [each for block in model.radio_model.model.blocks for each in block.named_modules()]
    for name, linear in layers:
        if isinstance(linear, nn.Linear):
            count = count_stacked(name, linear.out_features)
            parametrize.register_parametrization(linear, "weight", SpectralScale(linear.weight.detach(), count))


def update_spectral_norms(model: nn.Module) -> None:
    """Do one power iteration on every reparametrized weight, if there are any.

    Sharded weights are not gathered: each rank multiplies its rows, and two sums over ranks serve all weights.
    """
    parametrized = [module for module in model.modules() if isinstance(module, parametrize.ParametrizationList)]
    if parametrized:
        scales = [cast(SpectralScale, module[0]) for module in parametrized]
        _iterate(scales, [module.original for module in parametrized])


@torch.no_grad()
def _iterate(scales: Sequence[SpectralScale], weights: Sequence[Tensor]) -> None:
    """Do one power iteration on each weight, all of them whole or all sharded."""
    parts = [(rows, first_row(weight)) for rows, weight in zip(local_parts(weights), weights, strict=True)]
    rights = [scale.toward_inputs(*part) for scale, part in zip(scales, parts, strict=True)]
    for scale, right in zip(scales, sum_over_shards(rights, weights[0]), strict=True):
        scale.right.copy_(F.normalize(right, dim=1))
    lefts = [scale.toward_outputs(*part) for scale, part in zip(scales, parts, strict=True)]
    for scale, left in zip(scales, sum_over_shards(lefts, weights[0]), strict=True):
        scale.left.copy_(F.normalize(left, dim=1))


def fold_spectral_scales(model: nn.Module) -> None:
    """Replace every reparametrized weight by its value, under its plain name, in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            # Torch removes the property `weight` from the class, which a deep copy shares with its original.
            shared = type(module)
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
