"""What the network takes: checks of images, packs, draws and options, before anything is computed."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .config_checks_radio import LARGEST, WORD, integer, listed
from .configuration_radio import RadioConfig
from .encoder_radio import PATH_DRAWS
from .messages_radio import check_choice
from .packs_radio import ImagePack
from .position_crops_radio import POSITION_DRAWS
from .resolution_radio import Resolution, check_resolution, largest_side


def check_images(pixel_values: Any, config: RadioConfig, argument: str = "pixel_values") -> Resolution:
    """Return the rows and columns of patches of a batch of images.

    Args:
        pixel_values: RGB images in [0, 1], `(batch, channels, height, width)`.
        config: What decides the channels and the size.
        argument: What they, or the clips whose frames they are, were given as.

    Raises:
        ValueError: If shape, size or type are wrong.
    """
    _check_tensor(argument, pixel_values)
    if pixel_values.ndim != 4 or pixel_values.shape[0] < 1:
        hint = " Clips are `pixel_values_videos`." if pixel_values.ndim == 5 else ""
        raise ValueError(
            f"`{argument}` must have the shape (batch, channels, height, width) with at least one image, got "
            f"{tuple(pixel_values.shape)}.{hint}"
        )
    channels, height, width = pixel_values.shape[1:]
    if channels != config.num_channels:
        raise ValueError(f"`{argument}` must have {config.num_channels} channels, got {channels}.")
    _check_pixel_type(pixel_values, argument)
    if torch.jit.is_tracing():
        height, width = int(height), int(width)  # tensors there; a trace is of one size
    check_resolution(config, height, width, argument)
    return Resolution(height // config.patch_size, width // config.patch_size)


def check_merging(config: RadioConfig, num_tokens: object, *, decode: bool, is_packed: bool) -> None:
    """Refuse what only RADIO1D can do of a plain network, and what RADIO1D cannot do.

    Raises:
        ValueError: If the call asks for it.
    """
    if config.num_mergings:
        if is_packed:
            raise ValueError(
                "`image_grid_hw` must be None with `downscale_levels`, got a tensor. Merged tokens are not packed: "
                "call the model with images of one size, `(batch, channels, height, width)`."
            )
        return
    name, value, default = ("decode", decode, True) if num_tokens is None else ("num_tokens", num_tokens, None)
    if value is not default:
        shown = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"`{name}` must be {default}, got {shown}. This network has one token for each patch and no decoder; "
            "RADIO1D has them, for example the preset 'c-radio_v4-1d-h'."
        )


def _check_tensor(name: str, value: object) -> None:
    """Raise a `ValueError` where something else comes than a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must be a tensor, got a {type(value).__name__}. The image processor returns one.")


def _check_pixel_type(pixel_values: Tensor, argument: str) -> None:
    """Raise a `ValueError` for pixels that are no fractions."""
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"`{argument}` must be floating point in [0, 1], got {pixel_values.dtype}. Divide by 255 or use the "
            "image processor."
        )


def check_pack(patches: Any, image_grid_hw: Any, config: RadioConfig) -> ImagePack:
    """Return the order of a packed sequence.

    Args:
        patches: Flattened patches of all images, `(total_patches, channels * patch_size**2)`.
        image_grid_hw: Rows and columns of patches of each image, `(num_images, 2)`.
        config: What decides the size of a patch and the largest grid.

    Raises:
        ValueError: If the shapes do not fit each other, or a grid is too large.
    """
    _check_tensor("pixel_values", patches)
    _check_pixel_type(patches, "pixel_values")
    _check_tensor("image_grid_hw", image_grid_hw)
    is_list_of_pairs = image_grid_hw.ndim == 2 and image_grid_hw.shape[1] == 2 and len(image_grid_hw)
    if not is_list_of_pairs or image_grid_hw.is_floating_point() or image_grid_hw.is_complex():
        raise ValueError(
            "`image_grid_hw` must be integers of the shape (num_images, 2) with at least one image, got "
            f"{image_grid_hw.dtype} of {tuple(image_grid_hw.shape)}."
        )
    pack = ImagePack(image_grid_hw, config.num_prefix_tokens)
    expected = (sum(rows * cols for rows, cols in pack.grids), config.num_channels * config.patch_size**2)
    if patches.shape != expected:
        raise ValueError(
            f"`pixel_values` must have the shape {expected} for this `image_grid_hw`, got {tuple(patches.shape)}."
        )
    largest = largest_side(config) // config.patch_size
    if any(not 1 <= size <= largest for grid in pack.grids for size in grid):
        grids = [tuple(grid) for grid in pack.grids]
        raise ValueError(f"`image_grid_hw` must lie in [1, {largest}] patches, got {grids}.")
    return pack


def check_names(names: Sequence[str]) -> None:
    """Raise a `ValueError` unless names of adaptors are a list of them."""
    listed(WORD).check("adaptor_names", names)


def count_from_first(indices: Sequence[int], depth: int) -> list[int]:
    """Return 0-based blocks, of which negative ones were counted from the last.

    Raises:
        ValueError: If there is something else than integers.
    """
    if not isinstance(indices, Sequence) or not all(integer(-LARGEST).holds(index) for index in indices):
        raise ValueError(f"`indices` must be a list of integers, got {indices!r}.")
    return [index + depth if index < 0 else index for index in indices]


def check_feature_format(feature_format: str, is_packed: bool, *, argument: str = "feature_format") -> None:
    """Raise a `ValueError` that names the argument for an unknown format, or maps of packed images."""
    check_choice(argument, feature_format, ("NLC", "NCHW"))
    if is_packed and feature_format != "NLC":
        raise ValueError(
            f"`{argument}` must be 'NLC' with `image_grid_hw`, got {feature_format!r}. Packed images have no "
            "common grid."
        )


def count_draws(config: RadioConfig) -> int:
    """Return how many random numbers decide one image's training pass: its position crop and its dropped paths."""
    return POSITION_DRAWS + PATH_DRAWS * config.num_hidden_layers


def split_draws(
    draws: Tensor | None, config: RadioConfig, num_images: int
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return the draws of position crops and of dropped paths.

    Args:
        draws: Uniform numbers in [0, 1), `(num_images, count_draws(config))`, or `None`.
        config: What decides how many there are.
        num_images: Of the batch or the pack.

    Returns:
        `(num_images, POSITION_DRAWS)` and `(num_images, 1, blocks, PATH_DRAWS)`, or `None` twice.

    Raises:
        ValueError: If the shape is wrong.
    """
    if draws is None:
        return None, None
    _check_tensor("draws", draws)
    expected = (num_images, count_draws(config))
    if draws.shape != expected:
        raise ValueError(f"`draws` must have the shape {expected}, got {tuple(draws.shape)}.")
    return draws[:, :POSITION_DRAWS], draws[:, None, POSITION_DRAWS:].unflatten(2, (-1, PATH_DRAWS))


def warn_of_pixel_range(pixel_values: Tensor) -> bool:
    """Warn if images look normalized or in [0, 255], and return whether they do.

    A sample of the pixels tells; only on the CPU, since elsewhere looking at values would wait for the device.
    """
    if torch.compiler.is_compiling() or pixel_values.device.type != "cpu" or not pixel_values.numel():
        return False
    low, high = (bound.item() for bound in pixel_values.detach()[..., ::4, ::4].aminmax())
    is_suspect = low < -0.5 or high > 1.5  # our choice: resampling overshoots [0, 1] by far less
    if is_suspect:
        warnings.warn(
            f"`pixel_values` must lie in [0, 1], got [{low:.2f}, {high:.2f}]. The model normalizes inside: pass RGB "
            "divided by 255 and nothing more.",
            stacklevel=3,
        )
    return is_suspect
