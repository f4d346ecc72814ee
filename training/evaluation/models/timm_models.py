"""Networks of timm as evaluations see them, with the preprocessing of their `data_config`."""

from __future__ import annotations

import inspect
from typing import Any, cast

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import normalize, to_dtype, to_pil_image

from training.evaluation.models.base import Encoding
from training.evaluation.models.pretrained import PretrainedFeatures, tokens_to_maps


_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
"""What makes timm's transformers, which are built for one size, take any."""


class TimmFeatures(PretrainedFeatures):
    """A network of timm: the summary is what its classifier would see, the features those before it is pooled.

    Args:
        network: In eval mode, on its device.
        options: As of `PretrainedFeatures`.
    """

    def __init__(self, network: Any, **options: Any) -> None:
        self.data_config: dict[str, Any] = resolve_model_data_config(network)
        self.transform: Any = create_transform(**cast(Any, self.data_config), is_training=False)
        self.interpolation = InterpolationMode(self.data_config["interpolation"])
        super().__init__(network, self.data_config, **options)

    def preprocess_as_published(self, image: Tensor) -> Tensor:
        """Return what timm's own transform makes of an image."""
        return self.transform(to_pil_image(image))

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image normalized."""
        pixels = to_dtype(image, torch.float32, scale=True)
        return normalize(pixels, self.data_config["mean"], self.data_config["std"])

    def answer(self, pixels: Tensor) -> Encoding:
        """Return summary and dense features of normalized images."""
        network: Any = self.network
        hidden = network.forward_features(pixels)
        summary = network.forward_head(hidden, pre_logits=True)
        return Encoding(summary.flatten(1), self._maps(hidden, pixels))

    def _maps(self, hidden: Any, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if isinstance(hidden, Tensor) and hidden.ndim == 4:
            is_channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
            return hidden.movedim(-1, 1) if is_channels_last else hidden
        if isinstance(hidden, Tensor) and hidden.ndim == 3:
            network: Any = self.network
            for stride in sorted({int(info["reduction"]) for info in network.feature_info}):
                rows, cols = height // stride, width // stride
                if hidden.shape[1] - rows * cols == getattr(network, "num_prefix_tokens", 0):  # LeViT has none
                    return tokens_to_maps(hidden, rows, cols)
        shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ValueError(
            f"`forward_features` of timm's {type(self.network).__name__} must be a map or tokens on a grid of patches, "
            f"got {shape} for images of {height} x {width} px. Teach it to training/evaluation/models/timm_models.py."
        )


def open_timm(model_name: str, *, pretrained: bool, device: str | torch.device = "cpu", **options: Any) -> TimmFeatures:
    """Open a network of timm.

    Args:
        model_name: As `timm.create_model` takes it: a name, `local-dir:FOLDER`, `hf-hub:ORG/NAME`.
        pretrained: False for random weights.
        device: Where it runs.
        options: `name`, `size_px` and `dtype`, as of `PretrainedFeatures`.

    Raises:
        ValueError: If there is no such network or its weights cannot be had, or its answer has no dense features.
    """
    try:
        network = timm.create_model(model_name)
        freedom: dict[str, Any] = {name: value for name, value in _ANY_SIZE.items() if _takes(type(network), name)}
        network = timm.create_model(model_name, pretrained=pretrained, **freedom)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"timm does not open {model_name!r}: {reason}. See `timm.list_models()`.") from error
    return TimmFeatures(network.eval().to(device), **options)


def _takes(model_class: type, argument: str) -> bool:
    """Return whether the class, or one that it hands its arguments on to, names an argument."""
    return any(argument in inspect.signature(each.__init__).parameters for each in model_class.__mro__)
