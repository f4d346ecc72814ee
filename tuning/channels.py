"""Tuning on images of any channels: their folders and augmentation, and the first layer of a network that sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision import tv_tensors

from modeling_radio import RadioConfig, RadioPreTrainedModel
from modeling_radio.data.arrays import LEAST_DEVIATION
from modeling_radio.data.settings import RGB
from modeling_radio.tuning.settings import FinetuneSettings, TaskDataSettings


if TYPE_CHECKING:
    pass

SHOWN_QUANTILE = 0.98
"""Our choice: pixels of a picture that is shown may be white up to this share."""
FIRST_LAYER = "radio_model.model.patch_generator.embedder"
_CONDITIONER = "radio_model.input_conditioner"


def clamped(image: tv_tensors.Image) -> tv_tensors.Image:
    """Return a resized image with values in [0, 1], as `RadioImageProcessor` does."""
    return tv_tensors.wrap(image.clamp(0, 1), like=image)


def jittered(image: tv_tensors.Image, strength: float) -> tv_tensors.Image:
    """Return an image whose channels are each multiplied by a random factor from 1 - `strength` to 1 + `strength`."""
    factors = 1 + strength * (2 * torch.rand(len(image), 1, 1) - 1)
    return tv_tensors.wrap((image * factors).clamp(0, 1), like=image)


def shown_in_rgb(images: Tensor, settings: TaskDataSettings) -> Tensor:
    """Return three channels of images, brightened, for figures: `(batch, 3, height, width)`."""
    if settings.num_channels is None:
        return images
    shown = images[:, rgb_of(settings) or (0, 0, 0)]
    white = shown.flatten(1).float().quantile(SHOWN_QUANTILE, dim=1).clamp(min=LEAST_DEVIATION)
    return (shown / white.view(-1, 1, 1, 1)).clamp(0, 1)


def rgb_of(settings: TaskDataSettings) -> tuple[int, ...]:
    """Return the channels that are red, green and blue; none of fewer than three channels.

    Raises:
        ValueError: If the images have no such channels.
    """
    count = settings.num_channels or 3
    given = settings.rgb_channels
    if given is None:
        return RGB if count >= len(RGB) else ()
    if len(given) != len(RGB) or len(set(given)) != len(RGB) or not all(0 <= each < count for each in given):
        raise ValueError(f"`rgb_channels` must be three of the channels 0 to {count - 1}, got {given}.")
    return given


def widen_first_layer(weight: Tensor, num_channels: int, rgb: Sequence[int]) -> Tensor:
    """Return the weights of a layer on patches of other channels, made from one on RGB.

    The channels of `rgb` keep the weights of red, green and blue, all others get their mean. All weights are multiplied
    by 3 / `num_channels`, which keeps the size of the sum where channels are alike. Our choice: on a set of five
    channels copies in turn, or zeros, were no better.

    Args:
        weight: `(hidden, 3 * patch**2)`, channel-major.
        num_channels: Number of channels.
        rgb: Those that are red, green and blue; may be empty.

    Returns:
        `(hidden, num_channels * patch**2)`.
    """
    colors = weight.unflatten(1, (len(RGB), -1))
    wide = colors.mean(1, keepdim=True).repeat(1, num_channels, 1)
    if rgb:
        wide[:, list(rgb)] = colors
    return (wide * (len(RGB) / num_channels)).flatten(1)


def check_widening(settings: FinetuneSettings, config: RadioConfig) -> None:
    """Refuse channels that a run cannot train.

    Args:
        settings: Settings of the run.
        config: Configuration of the checkpoint.

    Raises:
        ValueError: It names the setting.
    """
    count = settings.num_channels
    if count is None:
        if settings.rgb_channels is not None:
            raise ValueError("`rgb_channels` is about images of `num_channels`, which is left out.")
        if config.num_channels != len(RGB):
            raise ValueError(f"`num_channels` must be {config.num_channels}, as the checkpoint's, got None.")
        return
    if settings.streaming:
        raise ValueError(f"`streaming` reads RGB images, got `num_channels` {count}: leave one of them out.")
    has_layer = not config.is_foreign and config.navit is None and config.video_temporal_patch_size is None
    if config.num_channels not in (len(RGB), count) or (not has_layer and config.num_channels != count):
        raise ValueError(f"`num_channels` {count} does not fit this checkpoint of {config.num_channels} channels.")
    rgb_of(settings)
    if config.num_channels == len(RGB) and (settings.uses_adapter or settings.quantize):
        raise ValueError(
            f"`tune` must be 'head' or 'full' with `num_channels` {count} on an RGB checkpoint, got {settings.tune!r}: "
            "an adapter has no first layer and no normalization."
        )


def widened(model: RadioPreTrainedModel, config: RadioConfig, settings: FinetuneSettings) -> RadioPreTrainedModel:
    """Return a model for the channels and the normalization of a configuration, made from one for RGB."""
    state = model.state_dict()
    key = f"{FIRST_LAYER}.weight"
    if config.num_channels != model.config.num_channels:
        state[key] = widen_first_layer(state[key], config.num_channels, rgb_of(settings))
    for name in ("norm_mean", "norm_std"):
        state[f"{_CONDITIONER}.{name}"] = torch.tensor(getattr(config, name)).view(-1, 1, 1)
    wide = type(model)(config)
    wide.load_state_dict(state)
    return wide.eval()
