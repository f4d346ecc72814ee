"""Image processor of the RADIO vision backbones: any image to pixels in [0, 1] of a valid size, and back."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.processing_utils import ImagesKwargs
from transformers.utils.generic import TensorType

from .annotations_radio import Geometry, detection_targets, instance_labels, semantic_labels
from .configuration_radio import RadioConfig
from .image_reading_radio import check_values, fetch, flatten, read_image, read_label_maps, to_rgb
from .messages_radio import did_you_mean
from .pixels_radio import join_images, resize_images
from .post_processing_radio import PostProcessing
from .processor_settings_radio import IDENTITY, check_settings, check_spelling, check_together, settings_of_model
from .resolution_radio import read_exact_size, read_size, resized_resolution


class RadioImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of `RadioImageProcessor` beyond those of every image processor; see the class."""

    patch_size: int
    size_divisor: int | None
    max_img_size: int
    do_pack: bool | None
    do_reduce_labels: bool | None


class RadioImageProcessor(PostProcessing, TorchvisionBackend):
    r"""Turns images into `pixel_values` for `RadioModel`: RGB floats in [0, 1], sides multiples of the patch.

    It never normalizes: the model subtracts its own mean inside, so `do_normalize=True` is refused. Images
    may be PIL images, numpy arrays, torch tensors (channels first or last), paths or URLs, one or a list.
    Gray becomes RGB, transparency is laid on white (as transformers does), 16-bit images are scaled by their
    own range; in PIL's mode "I" white is 255 where no value exceeds that, and else 65535. Files are turned as
    their EXIF data say; PIL images are not, as nowhere in transformers: `ImageOps.exif_transpose` turns them.
    Floats already in [0, 1] need `do_rescale=False`. Labels may come with the images: see `preprocess`.

    Args:
        size: What to resize to. `{"height": h, "width": w}` (or `(h, w)`) is exactly that; everything else
            keeps the aspect ratio, up to rounding to whole patches. `{"shortest_edge": n}` (or just `n`) and
            `{"longest_edge": n}` scale that side to `n` pixels; together the longest edge is a bound.
            `{"max_height": h, "max_width": w}` is the largest size within both, as detectors of transformers take it.
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
        pad_size: `{"height": h, "width": w}` to pad to instead of the largest image, and from there to the next whole
            patch: 600, which transformers' detection program asks for, becomes 608.
        do_reduce_labels: In `segmentation_maps` class 0 is background: it becomes 255, which is ignored, and all others
            become one less. Padding is 255 too, transformers' value, whatever `semantic_loss_ignore_index` says.
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
    # Of no use here, but written into `preprocessor_config.json` for other classes and programs that read it: CLIP's
    # processor would else crop the middle, and transformers' example programs normalize by these.
    do_center_crop = False
    do_normalize = False
    image_mean = IDENTITY["image_mean"]
    image_std = IDENTITY["image_std"]
    do_pad = False
    do_pack = False
    do_reduce_labels = False
    patch_size = 16
    size_divisor = None
    max_img_size = 2048

    def __init__(self, **kwargs: Any) -> None:
        check_spelling(kwargs, self.valid_kwargs.__annotations__)
        check_settings({name: value for name, value in kwargs.items() if value is not None})
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def from_model_config(cls, config: RadioConfig, **overrides: Any) -> "RadioImageProcessor":
        """Return the processor that fits a model: its patch, its largest side and its preferred resolution.

        Args:
            config: The model's configuration.
            overrides: Any option of this class.
        """
        return cls(**{**settings_of_model(config), **overrides})

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
        full_scale = 1 / rescale_factor if do_rescale else 1.0
        tensor = read_image(fetch(image), bool(do_convert_rgb), input_data_format).to(device)
        tensor = check_values(tensor, full_scale)
        return to_rgb(tensor, full_scale) if do_convert_rgb else tensor

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        """Return all images in one flat list, also gray arrays of two axes, which the base class refuses."""
        flat = flatten(fetch(images))
        if not flat:
            raise ValueError("`images` must hold at least one image, got none.")
        return flat

    # pyrefly: ignore[bad-override]  (options by name only)
    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        *,
        annotations: Any = None,
        instance_id_to_semantic_id: Any = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | Path | None = None,
        **settings: Any,
    ) -> BatchFeature:
        """Return the model's inputs for one or more images; calling the processor is the same.

        Args:
            images: See the class.
            segmentation_maps: The class of each pixel, one map of its size for each image: PIL images of one channel,
                or integers `(height, width)`. They become `labels` `(batch, height, width)` for
                `RadioForSemanticSegmentation`, resized by nearest neighbor, 255 (ignored) on padding.
            annotations: Objects, one dictionary for each image in COCO's form of detection or of panoptic
                segmentation. They become `labels` for the detection models, see `detection_targets`.
            instance_id_to_semantic_id: The class of each instance, one dictionary for all images or one for each:
                `segmentation_maps` then hold instances, and become `mask_labels` and `class_labels` for
                `RadioForUniversalSegmentation`.
            return_segmentation_masks: Whether `labels` made of `annotations` have `masks`; `None`: panoptic ones do.
            masks_path: Folder of the maps of panoptic annotations.
            settings: Any option of the class, for this call.

        Raises:
            TypeError: On an option that does not exist.
            ValueError: On an image, label or option that cannot be right; it is named.
        """
        unknown = [name for name in settings if name not in self._valid_kwargs_names]
        if unknown:
            hint = did_you_mean(unknown[0], self._valid_kwargs_names)
            raise TypeError(f"`{unknown[0]}` is no option of {type(self).__name__}.{hint}")
        check_settings(settings)
        if annotations is not None and segmentation_maps is not None:
            raise ValueError(
                "`annotations` must be None with `segmentation_maps`, got both. Choose one kind of labels."
            )
        if instance_id_to_semantic_id is not None and segmentation_maps is None:
            raise ValueError("`segmentation_maps` must be given with `instance_id_to_semantic_id`, got None.")
        defaults = {name: getattr(self, name, None) for name in self._valid_kwargs_names}
        settings = self._standardize_kwargs(**{**defaults, **settings})
        self._validate_preprocess_kwargs(**settings)
        return self._preprocess_image_like_inputs(
            images,
            segmentation_maps,
            annotations,
            instance_id_to_semantic_id,
            return_segmentation_masks,
            masks_path,
            **settings,
        )

    # pyrefly: ignore[bad-override]  (options by name only)
    def _standardize_kwargs(self, size: Any = None, pad_size: Any = None, **kwargs: Any) -> dict[str, Any]:
        size = None if size is None else read_size(size)
        pad_size = None if pad_size is None else read_exact_size(pad_size, "pad_size")
        return super()._standardize_kwargs(size=size, pad_size=pad_size, **kwargs)

    # pyrefly: ignore[bad-override]  (options by name only)
    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        check_settings(kwargs)  # also attributes, which may have been set since
        check_together(kwargs)
        super()._validate_preprocess_kwargs(**kwargs)

    # pyrefly: ignore[bad-override]  (options by name only)
    def _preprocess_image_like_inputs(
        self,
        images: Any,
        segmentation_maps: Any,
        annotations: Any,
        instance_id_to_semantic_id: Any,
        return_segmentation_masks: bool | None,
        masks_path: str | Path | None,
        **settings: Any,
    ) -> BatchFeature:
        """Read images, resize and join them, and bring labels to their geometry; arguments as of `preprocess`."""
        read = self._prepare_image_like_inputs(images, **settings)
        resized = self._resize_all(read, settings)
        inputs = BatchFeature(data=join_images(resized, settings), tensor_type=settings["return_tensors"])
        if segmentation_maps is None and annotations is None:
            return inputs
        if settings["do_pack"]:
            raise ValueError("`do_pack` must be False with labels, got True. Use `do_pad=True` or one exact `size`.")
        sizes = ([tuple(image.shape[-2:]) for image in several] for several in (read, resized, inputs["pixel_values"]))
        geometries = list(map(Geometry, *sizes))
        tensor_type = settings["return_tensors"]
        if annotations is not None:
            targets = detection_targets(annotations, geometries, masks_path, return_segmentation_masks)
            inputs["labels"] = [BatchFeature(target, tensor_type=tensor_type) for target in targets]
            return inputs
        maps, reduce = read_label_maps(segmentation_maps), bool(settings["do_reduce_labels"])
        if instance_id_to_semantic_id is None:
            labels = semantic_labels(maps, geometries, reduce)
            joined = labels if tensor_type is None else torch.stack(labels)
            inputs.update(BatchFeature({"labels": joined}, tensor_type=tensor_type))
        else:
            masks, classes = instance_labels(maps, geometries, instance_id_to_semantic_id, reduce)
            inputs["mask_labels"] = _convert_each(masks, tensor_type)
            inputs["class_labels"] = _convert_each(classes, tensor_type)
        return inputs

    def _resize_all(self, images: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
        """Resize images that `process_image` returned."""
        # Joining unlike images would change their dtype, and with it how resizing rounds.
        is_mixed = len({(image.dtype, image.device, len(image)) for image in images}) > 1
        groups, places = group_images_by_shape(images, disable_grouping=is_mixed or options["disable_grouping"])
        resized = {key: resize_images(self, group, options) for key, group in groups.items()}
        return list(reorder_images(resized, places))


def _convert_each(tensors: list[Tensor], tensor_type: str | TensorType | None) -> list[Any]:
    """Return tensors of different shapes, which no batch could hold, in the form that is wanted."""
    return [tensor.numpy() if tensor_type == "np" else tensor for tensor in tensors]


# `save_pretrained` then copies this file and names it in `auto_map`, also when it runs as remote code.
RadioImageProcessor.register_for_auto_class("AutoImageProcessor")
