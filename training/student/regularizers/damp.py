"""DAMP: multiplicative noise on linear weights in training, which makes them robust to corrupted images.

References:
    C-RADIOv4 2.4, https://arxiv.org/abs/2601.17237; DAMP, https://arxiv.org/abs/2406.16540
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio import RadioModel


class DampLinear(nn.Linear):
    """A linear layer whose weight is multiplied by noise of mean 1 in training; `(..., inputs)` to `(..., outputs)`.

    Algorithm 1 of DAMP: the gradient is taken at the noisy weight and applied to the clean one, without the factor that
    the chain rule would add. The noise comes from torch's global generator, so whoever seeds it decides who shares it.
    In evaluation, and so in the moving average, it is a plain linear layer.

    Args:
        linear: The layer whose weight and bias it takes, under the same names.
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
            weight = weight + self._noise(weight)
        return F.linear(input, weight, self.bias)

    @torch.no_grad()
    def _noise(self, weight: Tensor) -> Tensor:
        return weight * torch.randn_like(weight).mul_(self.sigma)


def add_damp(model: RadioModel, sigma: float) -> None:
    """Give every linear layer of the trunk noise, in place; parameters and the keys of the state stay the same.

    The adaptors stay plain: C-RADIOv4 2.4 makes the student robust, and NVIDIA's inference code registers DAMP on the
    linear layers of the backbone, the patch projection included, before it builds any adaptor.

    Args:
        model: The student, before its weights are parametrized or distributed.
        sigma: Standard deviation of the factors; 0.1 to 0.25 in the paper's appendix F.
    """
    trunk = model.radio_model.model
    linears = [(name, module) for name, module in trunk.named_modules() if type(module) is nn.Linear]
    for name, linear in linears:
        trunk.set_submodule(name, DampLinear(linear, sigma))
