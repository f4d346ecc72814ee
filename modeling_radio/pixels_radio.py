"""From images that were read to what the model takes: resized, in [0, 1], joined to a batch, a padded one or a pack."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict

from .resolution_radio import check_multiple, resized_resolution


# Our choice: mid gray lies near the published `norm_mean`, so the normalized padding is close to zero.
PAD_VALUE = 0.5

UINT8_MAX = 255


def resize_images(backend: TorchvisionBackend, images: Tensor, options: dict[str, Any]) -> Tensor:
    """Return images of one shape resized, `(batch, channels, height, width)` in their dtype.

    Args:
        backend: The processor of images or clips, which resizes.
        images: Of any size, with values that `check_values` has seen.
        options: The processor's, complete.

    Raises:
        ValueError: If they are not to be resized and their size is not valid.
    """
    height, width = images.shape[-2:]
    step = options["size_divisor"] or options["patch_size"]
    if not options["do_resize"]:
        check_multiple("`images` with `do_resize=False`", height, width, step, options["max_img_size"])
        return images
    target = resized_resolution(height, width, options["size"], step, options["max_img_size"])
    if target == (height, width):
        return images
    size = SizeDict(height=target.height, width=target.width)
    return backend.resize(images, size, resample=options["resample"])


def to_pixels(images: Tensor, options: dict[str, Any]) -> Tensor:
    """Return a copy of resized images in [0, 1], float32.

    Every new tensor of this size costs more time than computing with one, so there is one.
    """
    pixels = torch.empty(images.shape, dtype=torch.float32, device=images.device).copy_(images)
    scale = options["rescale_factor"] if options["do_rescale"] else 1.0
    if options["do_rescale"]:
        pixels *= scale
    if images.dtype == torch.uint8 and UINT8_MAX * scale <= 1:
        return pixels  # floats overshoot where they were resized
    return pixels.clamp_(0, 1)


def join_images(images: list[Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """Return resized images as the model takes them, as `do_pack`, `do_pad` and `return_tensors` say.

    Raises:
        ValueError: If they are of different sizes and none of these options takes such.
    """
    if not options["do_pack"] and not options["do_pad"] and options["return_tensors"] is not None:
        return {"pixel_values": to_pixels(_stack(images), options)}
    pixel_values = [to_pixels(image, options) for image in images]
    if options["do_pack"]:
        return _pack(pixel_values, options["patch_size"])
    if options["do_pad"]:
        step = options["size_divisor"] or options["patch_size"]
        return _pad(pixel_values, options["pad_size"], step, options["max_img_size"])
    return {"pixel_values": pixel_values}


def _stack(images: list[Tensor]) -> Tensor:
    """Return images of one size in one batch."""
    shapes = {tuple(image.shape[-2:]) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"`images` must become one size to fit one batch, got {len(shapes)} different sizes {sorted(shapes)}. Give "
            "one exact `size={'height': ..., 'width': ...}`, `do_pad=True` to pad to the largest, `do_pack=True` for "
            "packed patches, or `return_tensors=None` for a list."
        )
    return images[0].unsqueeze(0) if len(images) == 1 else torch.stack(images)


def _pad(images: list[Tensor], pad_size: SizeDict | None, step: int, max_img_size: int) -> dict[str, Tensor]:
    """Return all images in one batch, padded at the right and bottom, and where they are."""
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    if pad_size is not None:
        if not (pad_size.height and pad_size.width) or pad_size.height < height or pad_size.width < width:
            raise ValueError(
                f"`pad_size` must have a height and width of at least {height} and {width}, the largest image's, got "
                f"{dict(pad_size)}."
            )
        height, width = (-(-side // step) * step for side in (pad_size.height, pad_size.width))
        check_multiple("`pad_size`", height, width, step, max_img_size)
    pixel_values, masks = [], []
    for image in images:
        margins = (0, width - image.shape[-1], 0, height - image.shape[-2])
        pixel_values.append(F.pad(image, margins, value=PAD_VALUE))
        masks.append(F.pad(torch.ones_like(image[0], dtype=torch.long), margins))
    return {"pixel_values": torch.stack(pixel_values), "pixel_mask": torch.stack(masks)}


def _pack(images: list[Tensor], patch_size: int) -> dict[str, Tensor]:
    """Return the channel-major patches of all images in one tensor, and each image's rows and columns."""
    patches = []
    grids = []
    for image in images:
        channels, rows, cols = image.shape[0], image.shape[1] // patch_size, image.shape[2] // patch_size
        grid = image.reshape(channels, rows, patch_size, cols, patch_size)
        patches.append(grid.permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1))  # -> (rows * cols, channels * patch**2)
        grids.append((rows, cols))
    return {"pixel_values": torch.cat(patches), "image_grid_hw": torch.tensor(grids)}
