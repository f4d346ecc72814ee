"""Image processor of the RADIO vision backbones: any image to pixels in [0, 1] of a valid size, and back."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .configuration_radio import RadioConfig
from .image_reading_radio import check_values, flatten, read_image, to_rgb
from .post_processing_radio import PostProcessing
from .resolution_radio import check_multiple, read_size, resized_resolution


# Our choice: mid gray lies near the published `norm_mean`, so the normalized padding is close to zero.
PAD_VALUE = 0.5


class RadioImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of `RadioImageProcessor` beyond those of every image processor; see the class."""

    patch_size: int
    size_divisor: int | None
    max_img_size: int
    do_pack: bool | None


class RadioImageProcessor(PostProcessing, TorchvisionBackend):
    r"""Turns images into `pixel_values` for `RadioModel`: RGB floats in [0, 1], sides multiples of the patch.

    It never normalizes: the model subtracts its own mean inside, so `do_normalize=True` is refused. Images
    may be PIL images, numpy arrays, torch tensors (channels first or last), paths or URLs, one or a list.
    Gray becomes RGB, transparency is laid on white (as transformers does), 16-bit images are scaled by their
    own range. Floats already in [0, 1] need `do_rescale=False`.

    Args:
        size: What to resize to. `{"height": h, "width": w}` (or `(h, w)`) is exactly that; everything else
            keeps the aspect ratio, up to rounding to whole patches. `{"shortest_edge": n}` (or just `n`) and
            `{"longest_edge": n}` scale that side to `n` pixels; together the longest edge is a bound.
            `{"max_pixels": n}` bounds the area, `{"min_pixels": n}` from below, alone or with an edge; alone
            they keep the image's own size within the bound. The default, 512 on the shorter side, is the
            preferred resolution of C-RADIOv4, and a large photograph then costs no more than a small one.
        patch_size: Side of the model's patch in pixels.
        size_divisor: Round sides to multiples of this instead of the patch, for example patch times window.
        max_img_size: Longest side that the model accepts, in pixels.
        do_pad: Pad at the right and bottom to the largest image of the call, and return `pixel_mask`
            `(batch, height, width)`, 1 on the image, for `post_process_...`. The model takes `pixel_values`
            only and sees the padding as gray image; packing changes no result.
        do_pack: Return the patches of all images as `(total_patches, channels * patch_size**2)`, each
            channel-major, with `image_grid_hw` `(num_images, 2)`: how transformers' native `RadioModel` reads
            images of different sizes.
        pad_size: `{"height": h, "width": w}` to pad to instead of the largest image.
        resample: Filter for resizing, always antialiased.
        disable_grouping: Images of one shape are resized together where this is False, and one by one where it is
            True, with the same pixels. None (transformers' default) groups on accelerators only: on a CPU joining
            large images costs more than it saves.

    Raises:
        ValueError: On any image or option that cannot give valid pixels; the message says what to change.
    """

    valid_kwargs = RadioImageProcessorKwargs
    model_input_names = ["pixel_values", "image_grid_hw"]

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 512}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    do_pad = False
    do_pack = False
    patch_size = 16
    size_divisor = None
    max_img_size = 2048

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def from_model_config(cls, config: RadioConfig, **overrides: Any) -> "RadioImageProcessor":
        """Return the processor that fits a model: its patch, its largest side and its preferred resolution.

        Args:
            config: The model's configuration.
            overrides: Any option of this class.
        """
        fitting = {
            "patch_size": config.patch_size,
            "max_img_size": config.max_img_size,
            "size": {"shortest_edge": min(config.preferred_resolution)},
        }
        return cls(**{**fitting, **overrides})

    def get_output_size(self, height: int, width: int, size: Any = None) -> tuple[int, int]:
        """Return the height and width in pixels that an image of `height` by `width` is resized to.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            size: Target size as for a call; None takes the processor's own.
        """
        step = self.size_divisor or self.patch_size
        target = read_size(self.size if size is None else size)
        return resized_resolution(height, width, target, step, self.max_img_size)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: Any = None,
        do_rescale: bool | None = True,
        rescale_factor: float = 1 / 255,
        **kwargs: Any,
    ) -> Tensor:
        """Return one image of any kind as `(channels, height, width)`, uint8 or float32, not yet rescaled.

        Raises:
            ValueError: If the kind, the shape or the range of values cannot be right.
        """
        if do_rescale and not rescale_factor > 0:
            raise ValueError(f"`rescale_factor` must be positive, got {rescale_factor}.")
        full_scale = 1 / rescale_factor if do_rescale else 1.0
        tensor = read_image(image, bool(do_convert_rgb), input_data_format).to(device)
        tensor = check_values(tensor, full_scale)
        return to_rgb(tensor, full_scale) if do_convert_rgb else tensor

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        """Return all images in one flat list, also gray arrays of two axes, which the base class refuses."""
        flat = flatten(self.fetch_images(images))
        if not flat:
            raise ValueError("`images` must hold at least one image, got none.")
        return flat

    # pyrefly: ignore[bad-override]  (options by name only)
    def _standardize_kwargs(self, size: Any = None, **kwargs: Any) -> dict[str, Any]:
        if size is not None:
            size = read_size(size)
        return super()._standardize_kwargs(size=size, **kwargs)

    # pyrefly: ignore[bad-override]  (options by name only)
    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        if kwargs["do_normalize"]:
            raise ValueError(
                "`do_normalize` must be False, got True. RadioModel normalizes inside, and doing it twice spoils the "
                "features; see `norm_mean` and `norm_std` of the model's config."
            )
        if kwargs["do_center_crop"]:
            raise ValueError(
                "`do_center_crop` must be False, got True. Crop the image before, or give an exact `size`."
            )
        if kwargs["data_format"] not in (None, ChannelDimension.FIRST):
            raise ValueError(f"`data_format` must be 'channels_first', got {kwargs['data_format']!r}.")
        if kwargs["do_pad"] and kwargs["do_pack"]:
            raise ValueError(
                "`do_pad` must be False with `do_pack=True`, got True. They are two ways to join images of different "
                "sizes: choose one."
            )
        _check_geometry(kwargs["patch_size"], kwargs["size_divisor"], kwargs["max_img_size"])
        super()._validate_preprocess_kwargs(**kwargs)

    # pyrefly: ignore[bad-override]  (options by name only)
    def _preprocess(self, images: list[Tensor], **options: Any) -> BatchFeature:
        """Resize, rescale and join images that `process_image` returned."""
        # Joining unlike images would change their dtype, and with it how resizing rounds.
        is_mixed = len({(image.dtype, image.device, len(image)) for image in images}) > 1
        groups, places = group_images_by_shape(images, disable_grouping=is_mixed or options["disable_grouping"])
        pixels = {key: self._to_pixels(group, options) for key, group in groups.items()}
        pixel_values = list(reorder_images(pixels, places))
        if options["do_pack"]:
            data = _pack(pixel_values, options["patch_size"])
        elif options["do_pad"]:
            step = options["size_divisor"] or options["patch_size"]
            data = _pad(pixel_values, options["pad_size"], step, options["max_img_size"])
        elif options["return_tensors"] is None:
            data = {"pixel_values": pixel_values}
        else:
            data = {"pixel_values": _stack(pixel_values)}
        return BatchFeature(data=data, tensor_type=options["return_tensors"])

    def _to_pixels(self, images: Tensor, options: dict[str, Any]) -> Tensor:
        """Return images of one shape resized and in [0, 1], float32 `(batch, channels, height, width)`."""
        height, width = images.shape[-2:]
        step = options["size_divisor"] or options["patch_size"]
        if options["do_resize"]:
            target = resized_resolution(height, width, options["size"], step, options["max_img_size"])
            if target != (height, width):
                size = SizeDict(height=target.height, width=target.width)
                images = self.resize(images, size, resample=options["resample"])
        else:
            check_multiple("`images` with `do_resize=False`", height, width, step, options["max_img_size"])
        images = images.to(torch.float32)
        if options["do_rescale"]:
            images = images * options["rescale_factor"]
        return images.clamp(0, 1)


def _check_geometry(patch_size: int, size_divisor: int | None, max_img_size: int) -> None:
    """Refuse options that leave no valid size."""
    if patch_size < 1:
        raise ValueError(f"`patch_size` must be at least 1, got {patch_size}.")
    step = size_divisor or patch_size
    if step % patch_size:
        raise ValueError(f"`size_divisor` must be a multiple of `patch_size` ({patch_size}), got {size_divisor}.")
    if max_img_size < step:
        raise ValueError(f"`max_img_size` must be at least one step of {step} pixels, got {max_img_size}.")


def _stack(images: list[Tensor]) -> Tensor:
    """Return images of one size in one batch."""
    shapes = {tuple(image.shape[-2:]) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"`images` must become one size to fit one batch, got {len(shapes)} different sizes {sorted(shapes)}. Give "
            "one exact `size={'height': ..., 'width': ...}`, `do_pad=True` to pad to the largest, `do_pack=True` for "
            "packed patches, or `return_tensors=None` for a list."
        )
    return torch.stack(images)


def _pad(images: list[Tensor], pad_size: SizeDict | None, step: int, max_img_size: int) -> dict[str, Tensor]:
    """Return all images in one batch, padded at the right and bottom, and where they are."""
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    if pad_size is not None:
        if not (pad_size.height and pad_size.width) or pad_size.height < height or pad_size.width < width:
            raise ValueError(
                f"`pad_size` must have a height and width of at least {height} and {width}, the largest image's, got "
                f"{dict(pad_size)}."
            )
        height, width = pad_size.height, pad_size.width
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


# `save_pretrained` then copies this file and names it in `auto_map`, also when it runs as remote code.
RadioImageProcessor.register_for_auto_class("AutoImageProcessor")
