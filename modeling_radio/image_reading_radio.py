"""Reading of images: PIL images, arrays and tensors of any layout become tensors of known shape and range."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import ChannelDimension, ImageType, get_image_type


# Our choice: how far outside its range a float image may lie before it is refused, since resizing overshoots.
RANGE_TOLERANCE = 1e-3


def flatten(images: Any) -> list[Any]:
    """Return the single images of an image, a batch with four axes, or a nested list of either."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in flatten(entry)]
    if get_image_type(images) in (ImageType.NUMPY, ImageType.TORCH) and images.ndim == 4:
        return list(images)
    return [images]


def read_image(image: Any, convert_rgb: bool, input_data_format: str | ChannelDimension | None) -> Tensor:
    """Return one image as `(channels, height, width)` in its own dtype.

    Args:
        image: A PIL image, or an array or tensor of two or three axes.
        convert_rgb: Read palettes and other modes of PIL images as RGB, with an alpha channel if they have any
            transparency. Arrays and tensors stay as they are; see `to_rgb`.
        input_data_format: Where the channels of arrays and tensors are; None finds out.

    Raises:
        ValueError: If it is something else, or of another shape.
    """
    kind = get_image_type(image)
    if kind == ImageType.PIL:
        tensor = _read_pil(image, convert_rgb)
        input_data_format = ChannelDimension.FIRST
    elif kind == ImageType.NUMPY:
        # The copy admits what torch refuses: mirrored views (`bgr[..., ::-1]`), other byte orders, read-only.
        tensor = torch.from_numpy(image.astype(image.dtype.newbyteorder("="), order="C"))
    elif kind == ImageType.TORCH:
        tensor = image
    else:
        raise ValueError(f"`images` must be PIL images, numpy arrays or torch tensors, got {type(image).__name__}.")
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
        input_data_format = ChannelDimension.FIRST
    if tensor.ndim != 3 or tensor.numel() == 0:
        raise ValueError(
            f"`images` must each have the shape (height, width[, channels]) or (channels, height, width), got "
            f"{tuple(tensor.shape)}."
        )
    if (input_data_format or _find_channels(tensor)) == ChannelDimension.LAST:
        tensor = tensor.permute(2, 0, 1)
    return tensor


def _read_pil(image: Any, convert_rgb: bool) -> Tensor:
    """Return a PIL image as a tensor, with an alpha channel if it has any transparency."""
    if image.mode.startswith("I"):
        # PIL would clip these to 255 in RGB. It opens 16-bit files as "I" or "I;16", depending on version.
        tensor = tvF.pil_to_tensor(image.convert("I"))
        low, high = tensor.aminmax()
        if low < 0 or high > 65535:
            raise ValueError(
                f"`images` of PIL's mode {image.mode!r} must hold 16-bit values, got [{low}, {high}]. Convert them "
                "to 8 bits."
            )
        return tensor.to(torch.uint16)
    if convert_rgb and image.mode != "F":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return tvF.pil_to_tensor(image)


def _find_channels(tensor: Tensor) -> ChannelDimension:
    """Return where 1, 3 or 4 channels are; first if both ends could be (transformers' rule)."""
    if tensor.shape[0] in (1, 3, 4):
        return ChannelDimension.FIRST
    if tensor.shape[-1] in (1, 3, 4):
        return ChannelDimension.LAST
    raise ValueError(f"`images` must have 1, 3 or 4 channels, first or last, got the shape {tuple(tensor.shape)}.")


def check_values(image: Tensor, full_scale: float) -> Tensor:
    """Return the image as uint8 or float32 with values in `[0, full_scale]`.

    Args:
        image: Any shape and dtype.
        full_scale: The value of white before rescaling: 255, or 1 if the image is not to be rescaled.

    Raises:
        ValueError: If the values contradict `full_scale`; the message says which option to change.
    """
    if image.dtype == torch.bool or image.is_complex():
        raise ValueError(
            f"`images` must be of integers or floats, got {image.dtype}. Masks are multiplied by 255 first."
        )
    if not image.is_floating_point() and full_scale == 1:
        raise ValueError(
            f"`do_rescale` must be True for images of integers ({image.dtype}), got False. It declares pixels in "
            "[0, 1]: leave it True."
        )
    if image.dtype == torch.uint16:
        return image.to(torch.float32) * (full_scale / 65535)
    if image.dtype != torch.uint8:
        is_float = image.is_floating_point()
        image = image.to(torch.float32)
        if is_float and full_scale > 1 and 0 < image.amax() <= 1:
            raise ValueError(
                f"`do_rescale` must be False for floats that seem to lie in [0, 1] already (the largest is "
                f"{image.amax():g}), got True. Pass `do_rescale=False`, or uint8 pixels."
            )
    low, high = image.aminmax()
    tolerance = RANGE_TOLERANCE * full_scale
    if not (low >= -tolerance and high <= full_scale + tolerance):  # also true of NaN
        raise ValueError(
            f"`images` must lie in [0, {full_scale:g}], got [{low:g}, {high:g}]. Give uint8, uint16 (scaled by "
            "65535), or floats in [0, 1] with `do_rescale=False`; do not normalize them."
        )
    return image


def to_rgb(image: Tensor, full_scale: float) -> Tensor:
    """Return `(3, height, width)` from gray, RGB or RGBA; transparent pixels become white.

    Args:
        image: `(channels, height, width)`, uint8 or float32.
        full_scale: The value of white.

    Raises:
        ValueError: If there are not 1, 3 or 4 channels.
    """
    channels = image.shape[0]
    if channels == 1:
        return image.expand(3, -1, -1)
    if channels == 3:
        return image
    if channels != 4:
        raise ValueError(f"`images` must have 1, 3 or 4 channels, got {channels}.")
    alpha = image[3:] / full_scale
    composite = image[:3] * alpha + full_scale * (1 - alpha)
    return composite if image.is_floating_point() else composite.round().to(image.dtype)
