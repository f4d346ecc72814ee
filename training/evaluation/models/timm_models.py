"""Networks of timm as evaluations see them, with the preprocessing of their `data_config`."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import normalize, to_dtype, to_pil_image

from training.evaluation.models.base import Encoding
from training.evaluation.models.pretrained import Preprocessing, PretrainedFeatures
from training.teachers.published.timm_networks import create_network, dense_features


class TimmPreprocessing(Preprocessing):
    """The preprocessing of timm's `data_config`.

    Args:
        data_config: As timm resolves it for a network.
    """

    def __init__(self, data_config: dict[str, Any]) -> None:
        super().__init__(data_config, InterpolationMode(data_config["interpolation"]))
        self.transform: Any = create_transform(**cast(Any, data_config), is_training=False)

    def as_published(self, image: Tensor) -> Tensor:
        """Return what timm's own transform makes of an image."""
        return self.transform(to_pil_image(image))

    def normalize(self, image: Tensor) -> Tensor:
        """Return the image normalized."""
        pixels = to_dtype(image, torch.float32, scale=True)
        return normalize(pixels, self.settings["mean"], self.settings["std"])


class TimmFeatures(PretrainedFeatures):
    """A network of timm: the summary is what its classifier would see, the features those before it is pooled.

    Args:
        network: In eval mode, on its device.
        options: As of `PretrainedFeatures`.
    """

    def __init__(self, network: Any, **options: Any) -> None:
        self.data_config: dict[str, Any] = resolve_model_data_config(network)
        super().__init__(network, TimmPreprocessing(self.data_config), **options)

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
