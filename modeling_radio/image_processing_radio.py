"""Image processor of the RADIO vision backbones: any image to pixels in [0, 1] of a valid size, and back."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    ImageType,
    PILImageResampling,
    SizeDict,
    get_image_type,
)
from transformers.processing_utils import ImagesKwargs

from .configuration_radio import RadioConfig


SIZE_KEYS = ("height", "width", "shortest_edge", "longest_edge", "min_pixels", "max_pixels")

# Our choice: mid grey lies near the published `norm_mean`, so the normalised padding is close to zero.
PAD_VALUE = 0.5

# Our choice: how far outside its range a float image may lie before it is refused, since resizing overshoots.
RANGE_TOLERANCE = 1e-3


class RadioImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of `RadioImageProcessor` beyond those of every image processor; see the class."""

    patch_size: int
    size_divisor: int | None
    max_img_size: int
    do_pack: bool | None


class RadioImageProcessor(TorchvisionBackend):
    r"""Turns images into `pixel_values` for `RadioModel`: RGB floats in [0, 1], sides multiples of the patch.

    It never normalises: the model subtracts its own mean inside, so `do_normalize=True` is refused. Images
    may be PIL images, numpy arrays, torch tensors (channels first or last), paths or URLs, one or a list.
    Grey becomes RGB, transparency is laid on white (as transformers does), 16-bit images are scaled by their
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
            only and sees the padding as grey image; packing changes no result.
        do_pack: Return the patches of all images as `(total_patches, channels * patch_size**2)`, each
            channel-major, with `image_grid_hw` `(num_images, 2)`: how transformers' native `RadioModel` reads
            images of different sizes.
        pad_size: `{"height": h, "width": w}` to pad to instead of the largest image.
        resample: Filter for resizing, always antialiased.

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
            size: As in the call; the processor's own where `None`.
        """
        size_dict = _to_size_dict(self.size if size is None else size)
        return _output_size(height, width, size_dict, self.size_divisor or self.patch_size, self.max_img_size)

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
        tensor = _read_image(image, bool(do_convert_rgb), input_data_format).to(device)
        tensor = _check_values(tensor, full_scale)
        return _to_rgb(tensor, full_scale) if do_convert_rgb else tensor

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        """Return all images in one flat list, also grey arrays of two axes, which the base class refuses."""
        flat = _flatten(self.fetch_images(images))
        if not flat:
            raise ValueError("`images` is empty: give at least one image.")
        return flat

    # pyrefly: ignore[bad-override]  (options by name only)
    def _standardize_kwargs(self, size: Any = None, **kwargs: Any) -> dict[str, Any]:
        if size is not None:
            size = _to_size_dict(size)
        return super()._standardize_kwargs(size=size, **kwargs)

    # pyrefly: ignore[bad-override]  (options by name only)
    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        if kwargs["do_normalize"]:
            raise ValueError(
                "`do_normalize=True` is not supported: RadioModel normalises inside, and doing it twice "
                "spoils the features. Leave it False; see `norm_mean` and `norm_std` of the model's config."
            )
        if kwargs["do_center_crop"]:
            raise ValueError("`do_center_crop=True` is not supported: crop the image before, or give an exact `size`.")
        if kwargs["data_format"] not in (None, ChannelDimension.FIRST):
            raise ValueError(f"`data_format` must be 'channels_first', got {kwargs['data_format']!r}.")
        if kwargs["do_pad"] and kwargs["do_pack"]:
            raise ValueError("`do_pad` and `do_pack` are two ways to join images of different sizes: choose one.")
        _check_geometry(kwargs["patch_size"], kwargs["size_divisor"], kwargs["max_img_size"])
        super()._validate_preprocess_kwargs(**kwargs)

    # pyrefly: ignore[bad-override]  (options by name only)
    def _preprocess(self, images: list[Tensor], **options: Any) -> BatchFeature:
        """Resize, rescale and join images that `process_image` returned."""
        pixel_values = [self._to_pixel_values(image, options) for image in images]
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

    def _to_pixel_values(self, image: Tensor, options: dict[str, Any]) -> Tensor:
        """Return one image resized and in [0, 1], float32 `(channels, height, width)`."""
        height, width = image.shape[-2:]
        step = options["size_divisor"] or options["patch_size"]
        if options["do_resize"]:
            target = _output_size(height, width, options["size"], step, options["max_img_size"])
            if target != (height, width):
                image = self.resize(image, SizeDict(height=target[0], width=target[1]), resample=options["resample"])
        else:
            _check_size(height, width, step, options["max_img_size"], "An image with `do_resize=False`")
        image = image.to(torch.float32)
        if options["do_rescale"]:
            image = image * options["rescale_factor"]
        return image.clamp(0, 1)

    def post_process_features(
        self,
        features: Tensor,
        target_sizes: Iterable[Sequence[int]],
        pixel_mask: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
    ) -> list[Tensor]:
        """Undo the geometry for feature maps: cut the padding off and resize to each original image.

        Args:
            features: `(batch, channels, rows, cols)`, or `(total_patches, channels)` of packed images.
            target_sizes: Height and width of each original image in pixels.
            pixel_mask: As the processor returned it with `do_pad`, `(batch, height, width)`.
            image_grid_hw: As the processor returned it with `do_pack`, `(num_images, 2)`.

        Returns:
            One map `(channels, height, width)` per image, interpolated bilinearly.
        """
        maps = _split_maps(features, pixel_mask, image_grid_hw)
        sizes = _to_size_list(target_sizes, len(maps), "target_sizes")
        # Channels stand in the batch axis, the only one that may be empty: an image without objects has no masks.
        return [
            F.interpolate(feature_map.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)
            for feature_map, size in zip(maps, sizes, strict=True)
        ]

    def post_process_masks(
        self,
        masks: Tensor,
        target_sizes: Iterable[Sequence[int]],
        threshold: float = 0.0,
        pixel_mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Undo the geometry for mask logits `(batch, num_masks, rows, cols)`.

        Returns:
            One boolean tensor `(num_masks, height, width)` per image, true where a logit exceeds `threshold`.
        """
        return [mask > threshold for mask in self.post_process_features(masks, target_sizes, pixel_mask)]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Iterable[Sequence[int]] | None = None,
        pixel_mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the most likely class of each pixel.

        Args:
            outputs: Has `logits` `(batch, num_classes, rows, cols)`.
            target_sizes: Height and width of each original image in pixels; `None` keeps the logits' own.
            pixel_mask: As the processor returned it with `do_pad`.

        Returns:
            One integer tensor `(height, width)` per image.
        """
        if target_sizes is None:
            maps = _split_maps(outputs.logits, pixel_mask, None)
        else:
            maps = self.post_process_features(outputs.logits, target_sizes, pixel_mask)
        return [logits.argmax(dim=0) for logits in maps]

    def post_process_depth_estimation(
        self,
        outputs: Any,
        target_sizes: Iterable[Sequence[int]] | None = None,
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return the depth of each pixel.

        Args:
            outputs: Has `predicted_depth` `(batch, rows, cols)`.
            target_sizes: Height and width of each original image in pixels; `None` keeps the prediction's own.
            pixel_mask: As the processor returned it with `do_pad`.

        Returns:
            Per image `predicted_depth` `(height, width)`, float32, in the unit of `outputs`.
        """
        depth = outputs.predicted_depth.float().unsqueeze(1)
        if target_sizes is None:
            maps = _split_maps(depth, pixel_mask, None)
        else:
            maps = self.post_process_features(depth, target_sizes, pixel_mask)
        return [{"predicted_depth": depth_map.squeeze(0)} for depth_map in maps]

    def post_process_boxes(
        self,
        boxes: Sequence[Tensor],
        target_sizes: Iterable[Sequence[int]],
        input_sizes: Iterable[Sequence[int]],
    ) -> list[Tensor]:
        """Undo the geometry for boxes.

        Args:
            boxes: Per image `(num_boxes, 4)`: left, top, right, bottom in pixels of `pixel_values`.
            target_sizes: Height and width of each original image in pixels.
            input_sizes: Height and width of each image within `pixel_values`, without padding:
                `get_output_size` of the original, or its row of `image_grid_hw` times the patch size.

        Returns:
            Per image `(num_boxes, 4)` in pixels of the original, clipped to it.
        """
        restored = []
        targets = _to_size_list(target_sizes, len(boxes), "target_sizes")
        inputs = _to_size_list(input_sizes, len(boxes), "input_sizes")
        for corners, (height, width), (input_height, input_width) in zip(boxes, targets, inputs, strict=True):
            scale = corners.new_tensor([width / input_width, height / input_height] * 2)
            limit = corners.new_tensor([width, height] * 2)
            restored.append((corners * scale).clamp(min=0).minimum(limit))
        return restored

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: Iterable[Sequence[int]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return the objects of each image, the most certain first.

        Args:
            outputs: Has `logits` `(batch, num_queries, num_classes)` and `pred_boxes` `(batch, num_queries, 4)`.
            threshold: Least score, in [0, 1].
            target_sizes: Height and width of each original image in pixels; `None` keeps shares of the image.

        Returns:
            Per image `scores` and `labels` `(num_objects,)` and `boxes` `(num_objects, 4)`: left, top, right, bottom.
            Padding and resizing are undone, since boxes are shares of the image without padding.
        """
        ranked = [_rank_objects(logits, threshold) for logits in outputs.logits]
        corners = box_convert(outputs.pred_boxes, "cxcywh", "xyxy")
        chosen = [corners[index, queries] for index, (_, _, queries) in enumerate(ranked)]
        shares = [(1, 1)] * len(chosen)
        boxes = self.post_process_boxes(chosen, shares if target_sizes is None else target_sizes, shares)
        return [
            {"scores": scores, "labels": labels, "boxes": image_boxes}
            for (scores, labels, _), image_boxes in zip(ranked, boxes, strict=True)
        ]

    def post_process_instances(
        self,
        outputs: Any,
        target_sizes: Iterable[Sequence[int]],
        threshold: float = 0.5,
        mask_threshold: float = 0.0,
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return the objects of each image with their masks, the most certain first; masks may overlap.

        It is not called `post_process_instance_segmentation`: the stock `image-segmentation` pipeline would then call
        it for semantic segmentation too. Folders of that model bring a pipeline of their own, which calls this one.

        Args:
            outputs: As in `post_process_object_detection`, and `pred_masks` `(batch, num_queries, rows, cols)`.
            target_sizes: Height and width of each original image in pixels.
            threshold: Least score, in [0, 1].
            mask_threshold: A pixel belongs to the object where its logit exceeds this.
            pixel_mask: As the processor returned it with `do_pad`.

        Returns:
            Per image `scores`, `labels`, `boxes` as in `post_process_object_detection`, and `masks`
            `(num_objects, height, width)`, boolean.
        """
        sizes = _to_size_list(target_sizes, len(outputs.logits), "target_sizes")
        objects = self.post_process_object_detection(outputs, threshold, sizes)
        maps = _split_maps(outputs.pred_masks, pixel_mask, None)
        for found, logits, mask_logits, size in zip(objects, outputs.logits, maps, sizes, strict=True):
            queries = _rank_objects(logits, threshold)[2]
            found["masks"] = self.post_process_masks(mask_logits[queries].unsqueeze(0), [size], mask_threshold)[0]
        return objects


def _flatten(images: Any) -> list[Any]:
    """Return the single images of an image, a batch with four axes, or a nested list of either."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in _flatten(entry)]
    if get_image_type(images) in (ImageType.NUMPY, ImageType.TORCH) and images.ndim == 4:
        return list(images)
    return [images]


def _read_image(image: Any, convert_rgb: bool, input_data_format: str | ChannelDimension | None) -> Tensor:
    """Return a PIL image, array or tensor as `(channels, height, width)` in its own dtype."""
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
        raise ValueError(f"An image must be a PIL image, a numpy array or a torch tensor, got {type(image).__name__}.")
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
        input_data_format = ChannelDimension.FIRST
    if tensor.ndim != 3 or tensor.numel() == 0:
        raise ValueError(f"An image must have the shape (height, width[, channels]), got {tuple(tensor.shape)}.")
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
                f"A PIL image of mode {image.mode!r} must hold 16-bit values, got [{low}, {high}]: convert "
                "it to 8 bits."
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
    raise ValueError(f"An image must have 1, 3 or 4 channels, first or last, got the shape {tuple(tensor.shape)}.")


def _check_values(image: Tensor, full_scale: float) -> Tensor:
    """Return the image as uint8 or float32 with values in `[0, full_scale]`.

    Args:
        image: Any shape and dtype.
        full_scale: The value of white before rescaling: 255, or 1 if the image is not to be rescaled.

    Raises:
        ValueError: If the values contradict `full_scale`; the message says which option to change.
    """
    if image.dtype == torch.bool or image.is_complex():
        raise ValueError(
            f"An image must be of integers or floats, got {image.dtype}: a mask is multiplied by 255 first."
        )
    if not image.is_floating_point() and full_scale == 1:
        raise ValueError(f"`do_rescale=False` declares pixels in [0, 1], got integers ({image.dtype}): leave it True.")
    if image.dtype == torch.uint16:
        return image.to(torch.float32) * (full_scale / 65535)
    if image.dtype != torch.uint8:
        is_float = image.is_floating_point()
        image = image.to(torch.float32)
        if is_float and full_scale > 1 and 0 < image.amax() <= 1:
            raise ValueError("Float pixels seem to lie in [0, 1] already: pass `do_rescale=False`, or uint8 pixels.")
    low, high = image.aminmax()
    tolerance = RANGE_TOLERANCE * full_scale
    if not (low >= -tolerance and high <= full_scale + tolerance):  # also true of NaN
        raise ValueError(
            f"Pixels must lie in [0, {full_scale:g}] here, got [{low:g}, {high:g}]: give uint8, uint16 "
            "(scaled by 65535), or floats in [0, 1] with `do_rescale=False`; do not normalise them."
        )
    return image


def _to_rgb(image: Tensor, full_scale: float) -> Tensor:
    """Return `(3, height, width)` from grey, RGB or RGBA; transparent pixels become white."""
    channels = image.shape[0]
    if channels == 1:
        return image.expand(3, -1, -1)
    if channels == 3:
        return image
    if channels != 4:
        raise ValueError(f"An image must have 1, 3 or 4 channels, got {channels}.")
    alpha = image[3:] / full_scale
    composite = image[:3] * alpha + full_scale * (1 - alpha)
    return composite if image.is_floating_point() else composite.round().to(image.dtype)


def _to_size_dict(size: Any) -> SizeDict:
    """Return `size` as transformers' `SizeDict`; a combination that means nothing here is an error."""
    if isinstance(size, SizeDict):
        return size
    if isinstance(size, int):
        size = {"shortest_edge": size}
    elif isinstance(size, Sequence) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, dict) or not size or not set(size) <= set(SIZE_KEYS):
        raise ValueError(
            f"`size` must be an integer, (height, width) or a dict with some of {SIZE_KEYS}, got {size!r}."
        )
    if any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in size.values()):
        raise ValueError(f"`size` must hold positive integers, got {size!r}.")
    if ("height" in size or "width" in size) and set(size) != {"height", "width"}:
        raise ValueError(f"`size` with 'height' or 'width' must hold both and nothing else, got {size!r}.")
    return SizeDict(**size)


def _output_size(height: int, width: int, size: SizeDict, step: int, max_img_size: int) -> tuple[int, int]:
    """Return the size to resize to: multiples of `step`, within the bounds of `size` and `max_img_size`."""
    if size.height and size.width:
        _check_size(size.height, size.width, step, max_img_size, "`size`")
        return size.height, size.width
    longest = min(size.longest_edge or max_img_size, max_img_size)
    if longest < step or (size.max_pixels or step**2) < step**2:
        raise ValueError(f"`size` {dict(size)} leaves no room for one patch of {step} x {step} pixels.")
    scale = _choose_scale(height, width, size, longest)
    limit = longest // step * step
    rows = min(_round_to_step(height * scale, step), limit)
    cols = min(_round_to_step(width * scale, step), limit)
    if size.max_pixels and rows * cols > size.max_pixels:
        # Rounding down keeps the bound, but for a strip so thin that its short side was raised to one step.
        rows, cols = (max(int(side * scale / step), 1) * step for side in (height, width))
        longest_side = size.max_pixels // min(rows, cols) // step * step
        rows, cols = min(rows, longest_side), min(cols, longest_side)
    return rows, cols


def _choose_scale(height: int, width: int, size: SizeDict, longest: int) -> float:
    """Return the factor for both sides that `size` asks for; it brings no side beyond `longest`."""
    scale = 1.0
    if size.shortest_edge:
        scale = size.shortest_edge / min(height, width)
    elif size.longest_edge:
        scale = size.longest_edge / max(height, width)
    if size.min_pixels:
        scale = max(scale, (size.min_pixels / (height * width)) ** 0.5)
    if size.max_pixels:
        scale = min(scale, (size.max_pixels / (height * width)) ** 0.5)
    return min(scale, longest / max(height, width))


def _round_to_step(length: float, step: int) -> int:
    return max(int(length / step + 0.5), 1) * step


def _check_size(height: int, width: int, step: int, max_img_size: int, name: str) -> None:
    """Raise a `ValueError` that names the nearest valid size unless the model accepts this one."""
    limit = max_img_size // step * step
    nearest = tuple(min(_round_to_step(side, step), limit) for side in (height, width))
    if nearest != (height, width):
        raise ValueError(
            f"{name} must have sides that are multiples of {step} and at most {max_img_size} pixels, got "
            f"{height} x {width}; the nearest is {nearest[0]} x {nearest[1]}."
        )


def _check_geometry(patch_size: int, size_divisor: int | None, max_img_size: int) -> None:
    if patch_size < 1:
        raise ValueError(f"`patch_size` must be at least 1, got {patch_size}.")
    step = size_divisor or patch_size
    if step % patch_size:
        raise ValueError(f"`size_divisor` must be a multiple of `patch_size` ({patch_size}), got {size_divisor}.")
    if max_img_size < step:
        raise ValueError(f"`max_img_size` must be at least one step of {step} pixels, got {max_img_size}.")


def _stack(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape[-2:]) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"The {len(images)} images became {len(shapes)} different sizes {sorted(shapes)}, which do not "
            "fit one batch. Give one exact `size={'height': ..., 'width': ...}`, `do_pad=True` to pad to the "
            "largest, `do_pack=True` for packed patches, or `return_tensors=None` for a list."
        )
    return torch.stack(images)


def _pad(images: list[Tensor], pad_size: SizeDict | None, step: int, max_img_size: int) -> dict[str, Tensor]:
    """Return all images in one batch, padded at the right and bottom, and where they are."""
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    if pad_size is not None:
        if not (pad_size.height and pad_size.width) or pad_size.height < height or pad_size.width < width:
            raise ValueError(
                f"`pad_size` must have a height and width of at least {height} and {width}, the largest "
                f"image's; got {dict(pad_size)}."
            )
        height, width = pad_size.height, pad_size.width
        _check_size(height, width, step, max_img_size, "`pad_size`")
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


def _split_maps(features: Tensor, pixel_mask: Tensor | None, image_grid_hw: Tensor | None) -> list[Tensor]:
    """Return each image's own map `(channels, rows, cols)`, without padding."""
    if image_grid_hw is not None:
        lengths = image_grid_hw.prod(dim=-1).tolist()
        if features.ndim != 2 or features.shape[0] != sum(lengths):
            raise ValueError(
                f"Features of packed images must be ({sum(lengths)}, channels) to match `image_grid_hw`, got "
                f"{tuple(features.shape)}."
            )
        parts = zip(features.split(lengths), image_grid_hw.tolist(), strict=True)
        return [part.T.unflatten(1, grid) for part, grid in parts]
    if features.ndim != 4:
        raise ValueError(f"Maps must be (batch, channels, rows, cols), got {tuple(features.shape)}.")
    if pixel_mask is None:
        return list(features)
    rows = pixel_mask[:, :, 0].sum(dim=1) * features.shape[2] // pixel_mask.shape[1]
    cols = pixel_mask[:, 0, :].sum(dim=1) * features.shape[3] // pixel_mask.shape[2]
    extents = zip(rows.tolist(), cols.tolist(), strict=True)
    return [feature_map[:, :r, :c] for feature_map, (r, c) in zip(features, extents, strict=True)]


def _rank_objects(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return score, class and query of one image's objects; a query may stand for several classes.

    As in the deformable DETR family the best `num_queries` pairs of query and class compete.
    """
    num_queries, num_classes = logits.shape
    scores, pairs = logits.float().sigmoid().flatten().topk(num_queries)
    certain = scores > threshold
    pairs = pairs[certain]
    return scores[certain], pairs % num_classes, pairs // num_classes


def _to_size_list(sizes: Iterable[Sequence[int]], count: int, name: str) -> list[tuple[int, int]]:
    pairs = [(int(height), int(width)) for height, width in sizes]
    if len(pairs) != count:
        raise ValueError(f"`{name}` must have one (height, width) for each of the {count} images, got {len(pairs)}.")
    return pairs


# `save_pretrained` then copies this file and names it in `auto_map`, also when it runs as remote code.
RadioImageProcessor.register_for_auto_class("AutoImageProcessor")
