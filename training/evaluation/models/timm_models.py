"""Networks of timm as evaluations see them, with the preprocessing of their `data_config`."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import normalize, to_dtype, to_pil_image

from training.evaluation.models.base import Encoding
from training.evaluation.models.pretrained import PretrainedFeatures
from training.teachers.published.timm_networks import create_network, dense_features


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
        return Encoding(summary.flatten(1), dense_features(network, hidden, pixels))


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
    network = create_network(model_name, pretrained=pretrained)
    return TimmFeatures(network.eval().to(device), **options)
