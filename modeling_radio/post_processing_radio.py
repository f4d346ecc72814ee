"""Transforms labels to the geometry of the inputs, and outputs back to that of the original images."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, masks_to_boxes
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import load_image_as_tensor
from transformers.models.detr.image_processing_detr import convert_coco_poly_to_mask, convert_segmentation_to_rle
from transformers.utils.generic import is_numpy_array


IGNORED_CLASS = 255
"""Class of ignored pixels, as in transformers; the default of `semantic_loss_ignore_index`."""

DetectionTarget = dict[str, Tensor]


class Geometry(NamedTuple):
    """Heights and widths of one image in pixels: original, resized, and resized with padding."""

    original: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


def detection_targets(
    annotations: Any, geometries: Sequence[Geometry], masks_path: str | Path | None, with_masks: bool | None
) -> list[DetectionTarget]:
    """Return the labels of the detection models for each image.

    Args:
        annotations: One for each image, in COCO's form: `{"image_id": ..., "annotations": [{"category_id": ..., "bbox":
            [left, top, width, height], ...}]}`, or `{"image_id": ..., "file_name": ..., "segments_info": [...]}`
            (panoptic). Crowds and boxes without area are dropped. A `segmentation` is polygons or run lengths.
        geometries: Sizes of the images.
        masks_path: Folder of the panoptic maps that `file_name` names.
        with_masks: Also return `masks`; `None` returns them for panoptic annotations only.

    Returns:
        For each image `class_labels` `(n,)`, `boxes` `(n, 4)`: center x, center y, width and height as shares of the
        image without padding, `area` `(n,)` in pixels of the resized image, `iscrowd` `(n,)`, `image_id` `(1,)`,
        `orig_size` and `size` `(2,)`: height and width before and after resizing, without padding; `masks` `(n,
        height, width)` of the padded image, 0 or 1.

    Raises:
        ValueError: If an annotation is not as described.
        ImportError: If masks come from polygons and pycocotools is not installed.
    """
    annotations = [annotations] if isinstance(annotations, Mapping) else annotations
    targets = []
    for index, (annotation, geometry) in enumerate(zip(annotations, geometries, strict=True)):
        name = f"annotations[{index}]"
        if isinstance(annotation, Mapping) and "segments_info" in annotation:
            target = _read_panoptic(annotation, name, geometry.original, masks_path, with_masks is not False)
        elif isinstance(annotation, Mapping) and "annotations" in annotation:
            target = _read_objects(annotation, name, geometry.original, bool(with_masks))
        else:
            raise ValueError(
                f"`{name}` must be a dictionary with 'image_id' and 'annotations' (COCO's objects) or 'segments_info' "
                f"(COCO's panoptic segments), got {annotation!s:.80}."
            )
        targets.append(_fit(target, geometry))
    return targets


def semantic_labels(maps: Sequence[Tensor], geometries: Sequence[Geometry], reduce: bool) -> list[Tensor]:
    """Return the class of each pixel of each padded image, `(height, width)`, int64; padding is `IGNORED_CLASS`.

    Args:
        maps: One for each image and of its original size, `(height, width)`, int64.
        geometries: Sizes of the images.
        reduce: Ignore class 0, the background, and reduce all others by one.

    Raises:
        ValueError: If an image has no map of its size.
    """
    labels = []
    for label_map, geometry in zip(_fit_maps(maps, geometries), geometries, strict=True):
        if reduce:
            ignored = (label_map == 0) | (label_map == IGNORED_CLASS)
            label_map = (label_map - 1).masked_fill(ignored, IGNORED_CLASS)
        labels.append(_pad(label_map, geometry, IGNORED_CLASS))
    return labels


def instance_labels(
    maps: Sequence[Tensor],
    geometries: Sequence[Geometry],
    class_of_instance: Mapping[int, int] | Sequence[Mapping[int, int]],
    reduce: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return masks and classes of the instances of each image in the format of transformers' universal segmentation.

    Args:
        maps: The instance of each pixel, as in `semantic_labels`.
        geometries: Sizes of the images.
        class_of_instance: The class of each instance, one dictionary for all images or one for each.
        reduce: Drop instance 0, the background, and reduce all classes by one.

    Returns:
        For each image masks `(n, height, width)` of the padded image, float32, 0 or 1, and classes `(n,)`, int64.

    Raises:
        ValueError: If an image has no map of its size.
        KeyError: If an instance has no class.
    """
    classes = [class_of_instance] * len(geometries) if isinstance(class_of_instance, Mapping) else class_of_instance
    mask_labels, class_labels = [], []
    for label_map, geometry, own in zip(_fit_maps(maps, geometries), geometries, classes, strict=True):
        found = [number for number in label_map.unique().tolist() if not (reduce and number == 0)]
        masks = label_map == torch.tensor(found, dtype=torch.long).view(-1, 1, 1)
        mask_labels.append(_pad(masks.float(), geometry, 0))
        class_labels.append(torch.tensor([int(own[number]) - reduce for number in found], dtype=torch.long))
    return mask_labels, class_labels


def labeled_pixel_mask(labels: Any, pixel_values: Tensor) -> Tensor | None:
    """Return the pixel mask that follows from `size` in the labels: programs that train detectors drop `pixel_mask`.

    Args:
        labels: Those of `detection_targets`; others may have no `size`.
        pixel_values: Padded images, `(batch, channels, height, width)`.

    Returns:
        1 on the image and 0 on padding, `(batch, height, width)`, or `None` if the labels indicate no padding.
    """
    height, width = pixel_values.shape[-2:]
    has_sizes = isinstance(labels, Sequence) and all(isinstance(label, Mapping) and "size" in label for label in labels)
    if not has_sizes or len(labels) != pixel_values.shape[0]:
        return None
    sizes = [(int(rows), int(cols)) for rows, cols in (label["size"] for label in labels)]
    is_inside = all(0 < rows <= height and 0 < cols <= width for rows, cols in sizes)
    if not is_inside or all(size == (height, width) for size in sizes):
        return None
    mask = torch.zeros(len(sizes), height, width, dtype=torch.long, device=pixel_values.device)
    for image_mask, (rows, cols) in zip(mask, sizes, strict=True):
        image_mask[:rows, :cols] = 1
    return mask


def fill_run_lengths(counts: Any, size: Sequence[int]) -> Tensor:
    """Return the mask of COCO's run lengths, which alternate between 0 and 1, column by column.

    Args:
        counts: Integers, or COCO's compressed form of them, a string or bytes.
        size: Height and width of the image.

    Returns:
        0 and 1, `(height, width)`, uint8.

    Raises:
        ValueError: If they are no run lengths, or do not fill the image, which pycocotools does not check.
        TypeError: If they are neither numbers nor a string.
    """
    height, width = size
    counts = counts.tolist() if isinstance(counts, Tensor) or is_numpy_array(counts) else counts
    lengths = [_plain(number) for number in counts] if isinstance(counts, (list, tuple)) else _read_run_lengths(counts)
    are_lengths = all(type(length) is int and length >= 0 for length in lengths)
    if not are_lengths or sum(lengths) != height * width:
        raise ValueError("the runs do not fill the image")
    values = (torch.arange(len(lengths)) % 2).to(torch.uint8)
    return values.repeat_interleave(torch.tensor(lengths, dtype=torch.long)).view(width, height).T


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the bounding boxes of masks.

    Args:
        masks: `(n, height, width)`, none empty.

    Returns:
        `(n, 4)`, float32: left, top, right and bottom edge in pixels.
    """
    boxes = masks_to_boxes(masks)
    return boxes + boxes.new_tensor([0, 0, 1, 1])  # torchvision's end at the last pixel, inclusive


def _image_id(annotation: Mapping[str, Any]) -> Tensor:
    return _column([annotation], "image_id" if "image_id" in annotation else "id", torch.long)


def _column(entries: Sequence[Mapping[str, Any]], key: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Return the values under a key of each entry, `(n, *shape)`."""
    values = [torch.as_tensor(entry[key], dtype=dtype) for entry in entries]
    return torch.stack(values) if values else torch.zeros(0, *shape, dtype=dtype)


def _plain(number: Any) -> Any:
    """Return a number of numpy or torch as a Python number."""
    return number.item() if hasattr(number, "item") else number


def _read_objects(annotation: Mapping[str, Any], name: str, size: tuple[int, int], with_masks: bool) -> DetectionTarget:
    """Return the objects of an image in pixels of the original, boxes as corners."""
    height, width = size
    entries = [entry for entry in annotation["annotations"] if not entry.get("iscrowd")]
    boxes = box_convert(_column(entries, "bbox", torch.float32, 4), "xywh", "xyxy")
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2))
    kept = ~(boxes[:, 2:] <= boxes[:, :2]).any(dim=1)  # NaN stays, for the model to refuse
    areas = [{"area": entry.get("area", entry["bbox"][2] * entry["bbox"][3])} for entry in entries]
    target = {
        "image_id": _image_id(annotation),
        "class_labels": _column(entries, "category_id", torch.long)[kept],
        "boxes": boxes[kept],
        "area": _column(areas, "area", torch.float32)[kept],
        "iscrowd": torch.zeros(int(kept.sum()), dtype=torch.long),
    }
    if with_masks:
        missing = [index for index, entry in enumerate(entries) if not entry.get("segmentation")]
        if missing:
            raise ValueError(f"`segmentation` of entry {missing[0]} of `{name}` must be there for masks, got none.")
        masks = [
            _read_outline(entry["segmentation"], (height, width), f"entry {index} of `{name}`")
            for index, entry in enumerate(entries)
        ]
        target["masks"] = torch.stack(masks)[kept] if masks else torch.zeros(0, height, width, dtype=torch.uint8)
    return target


def _read_outline(outline: Any, size: tuple[int, int], where: str) -> Tensor:
    """Return the mask of polygons or run lengths, 0 and 1, `(height, width)`, uint8."""
    if not isinstance(outline, Mapping):
        return convert_coco_poly_to_mask([outline], *size, device=torch.device("cpu"))[0]
    try:
        if tuple(outline["size"]) != size:
            raise ValueError("they are of another size")
        return fill_run_lengths(outline["counts"], size)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`segmentation` of {where} must be polygons or run lengths that fill the image, {size[0]} x {size[1]} "
            f"(height x width), got {outline!s:.80}."
        ) from error


def _read_run_lengths(text: str | bytes) -> list[int]:
    """Return the run lengths of COCO's compressed form.

    Each character holds 5 bits of a number, lowest first, and a bit that says whether the number continues. From the
    fourth on, a number is the difference from the run before the last.
    """
    lengths: list[int] = []
    number = shift = 0
    for character in text.encode() if isinstance(text, str) else text:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError("a character is outside the spelling")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("the last number has no end")
    return lengths


def _read_panoptic(
    annotation: Mapping[str, Any], name: str, size: tuple[int, int], masks_path: str | Path | None, with_masks: bool
) -> DetectionTarget:
    """Return the segments of an image in pixels of the original."""
    segments = [entry for entry in annotation["segments_info"] if not entry.get("iscrowd")]
    ids = _column(segments, "id", torch.long)
    masks = _read_panoptic_map(annotation, name, size, masks_path) == ids.view(-1, 1, 1)
    kept = masks.flatten(1).any(dim=1)
    masks = masks[kept]
    target = {
        "image_id": _image_id(annotation),
        "class_labels": _column(segments, "category_id", torch.long)[kept],
        "boxes": mask_boxes(masks),
        "area": masks.flatten(1).sum(dim=1).float(),
        "iscrowd": torch.zeros(int(kept.sum()), dtype=torch.long),
    }
    return {**target, "masks": masks} if with_masks else target


def _read_panoptic_map(
    annotation: Mapping[str, Any], name: str, size: tuple[int, int], masks_path: str | Path | None
) -> Tensor:
    """Return the segment of each pixel, `(height, width)`."""
    if masks_path is None:
        raise ValueError(f"`masks_path` must be the folder of the map of `{name}`, got None.")
    folder, file_name = Path(masks_path).resolve(), annotation.get("file_name")
    path = folder / str(file_name)
    if not path.resolve().is_relative_to(folder) or not path.is_file():
        raise ValueError(f"`file_name` of `{name}` must be a file in `masks_path` ({masks_path}), got {file_name!r}.")
    red, green, blue = load_image_as_tensor(str(path)).long()
    segments = red + 256 * green + 256**2 * blue  # COCO's encoding of segment numbers
    if segments.shape != size:
        raise ValueError(
            f"The map {file_name!r} of `{name}` must be of the image's size {size}, got {tuple(segments.shape)}."
        )
    return segments


def _fit(target: DetectionTarget, geometry: Geometry) -> DetectionTarget:
    """Transform a target from the original image to the resized and padded one."""
    (height, width), (resized_height, resized_width) = geometry.original, geometry.resized
    shares = target["boxes"] / torch.tensor([width, height] * 2)
    target["boxes"] = box_convert(shares, "xyxy", "cxcywh")
    target["area"] = target["area"] * (resized_height / height) * (resized_width / width)
    if "masks" in target:
        target["masks"] = _pad(_resize(target["masks"], geometry.resized), geometry, 0)
    return {**target, "orig_size": torch.tensor(geometry.original), "size": torch.tensor(geometry.resized)}


def _fit_maps(maps: Sequence[Tensor], geometries: Sequence[Geometry]) -> list[Tensor]:
    """Return maps resized like their images, by nearest neighbor."""
    for index, (label_map, geometry) in enumerate(zip(maps, geometries, strict=True)):
        if label_map.shape != geometry.original:
            raise ValueError(
                f"`segmentation_maps[{index}]` must be of its image's size {tuple(geometry.original)}, got "
                f"{tuple(label_map.shape)}."
            )
    return [_resize(label_map, geometry.resized) for label_map, geometry in zip(maps, geometries, strict=True)]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `(..., height, width)` by nearest neighbor, in its own type."""
    flat = maps.reshape(1, -1, *maps.shape[-2:]).double()  # doubles hold all instance numbers exactly
    if not flat.numel():
        return maps.new_zeros(*maps.shape[:-2], *size)
    return F.interpolate(flat, size=size, mode="nearest-exact").view(*maps.shape[:-2], *size).to(maps.dtype)


def _pad(maps: Tensor, geometry: Geometry, value: int) -> Tensor:
    (height, width), (rows, cols) = geometry.resized, geometry.padded
    return F.pad(maps, (0, cols - width, 0, rows - height), value=value)


NO_SEGMENT = -1


def divide_pixels(masks: Tensor, least_share: float) -> Tensor:
    """Return masks without overlaps: each pixel belongs to the first mask that has it.

    Args:
        masks: `(n, height, width)`, boolean, the most certain first.
        least_share: A mask that keeps at most this share of its pixels becomes empty and frees them.

    Returns:
        Masks of the same shape.
    """
    divided = torch.zeros_like(masks)
    taken = masks.new_zeros(masks.shape[-2:])
    for mask, own in zip(masks, divided, strict=True):
        left = mask & ~taken
        if left.sum() > least_share * mask.sum():
            own.copy_(left)
            taken |= left
    return divided


def describe_segments(masks: Tensor, scores: Tensor, labels: Tensor, as_masks: bool) -> dict[str, Any]:
    """Return the segments of one image.

    Args:
        masks: `(n, height, width)`, boolean; empty ones are dropped.
        scores: `(n,)`.
        labels: `(n,)`.
        as_masks: Whether `segmentation` has a mask for each segment, `(segments, height, width)`. Otherwise it is one
            map, in which later masks cover earlier ones.
    """
    kept = masks.flatten(1).any(dim=1)
    masks, scores, labels = masks[kept], scores[kept], labels[kept]
    segments = [
        {"id": number, "label_id": label, "was_fused": False, "score": score}
        for number, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True))
    ]
    if as_masks:
        return {"segmentation": masks, "segments_info": segments}
    segmentation = torch.full(masks.shape[-2:], NO_SEGMENT, dtype=torch.int32, device=masks.device)
    for number, mask in enumerate(masks):
        segmentation[mask] = number
    return {"segmentation": segmentation, "segments_info": segments}


def segments_of_classes(class_map: Tensor) -> dict[str, Any]:
    """Return the classes of one image `(height, width)` as segments, with the class as number and without a score."""
    found = class_map.unique().tolist()
    segments = [{"id": label, "label_id": label, "was_fused": False, "score": None} for label in found]
    return {"segmentation": class_map.to(torch.int32), "segments_info": segments}


Reading = Literal["none", "sigmoid", "softmax"]
"""The function from logits to scores, by transformers' names; "none" for the numbers of a regression."""


def reading_of(config: Any) -> Reading:
    """Return the function from logits to scores: a single label is binary, unless it is a regression."""
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


def tempered(logits: Tensor, config: Any) -> Tensor:
    """Return logits `(..., num_labels)` divided by the configuration's temperature, except those of a regression."""
    return logits if reading_of(config) == "none" else logits / config.temperature


def class_scores(logits: Tensor, config: Any) -> Tensor:
    """Return the score of each label, float32: its probability in [0, 1], or the number of a regression.

    Args:
        logits: `(..., num_labels)`.
        config: Configuration of the classifier.

    Returns:
        `(..., num_labels)`.
    """
    scores, reading = tempered(logits.float(), config), reading_of(config)
    if reading == "none":
        return scores
    return scores.sigmoid() if reading == "sigmoid" else scores.softmax(dim=-1)


class PostProcessing:
    """The `post_process_*` methods of `RadioImageProcessor`; pipelines of transformers call them."""

    def post_process_features(
        self,
        features: Tensor,
        target_sizes: Iterable[Sequence[int]] | None = None,
        pixel_mask: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
    ) -> list[Tensor]:
        """Take the features of a batch apart, without padding, and resize them to the original images.

        Args:
            features: `(batch, channels, rows, cols)`, or `(total_patches, channels)` of packed images,
                also an adaptor's that upsamples.
            target_sizes: Height and width of each original image in pixels; `None` keeps each map's own.
            pixel_mask: As the processor returned it with `do_pad`, `(batch, height, width)`.
            image_grid_hw: As the processor returned it with `do_pack`, `(num_images, 2)`.

        Returns:
            One map `(channels, height, width)` per image, interpolated bilinearly; without `target_sizes`
            `(channels, rows, cols)`, as it is.
        """
        maps = _split_maps(features, pixel_mask, image_grid_hw)
        return (
            maps if target_sizes is None else _resize_maps(maps, _to_size_list(target_sizes, len(maps), "target_sizes"))
        )

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Iterable[Sequence[int]] | None = None,
        pixel_mask: Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Return the most likely class of each pixel.

        Args:
            outputs: Has `logits` `(batch, num_classes, rows, cols)`.
            target_sizes: Height and width of each original image in pixels; `None` keeps the logits' own.
            pixel_mask: As the processor returned it with `do_pad`.
            return_segmentation_scores: Also return each image's logits.

        Returns:
            One integer tensor `(height, width)` per image; with scores an output of transformers with this tensor as
            `segmentation` and the logits as `segmentation_scores`, `(num_classes, height, width)`.

        Raises:
            ValueError: If the outputs are those of an instance segmenter.
        """
        scores = self._scores_of_classes(outputs, target_sizes, pixel_mask)
        if not return_segmentation_scores:
            return [image_scores.argmax(dim=0) for image_scores in scores]
        return [
            SemanticSegmentationPostProcessorOutput(
                {"segmentation": image_scores.argmax(dim=0), "segmentation_scores": image_scores}
            )
            for image_scores in scores
        ]

    def _scores_of_classes(
        self, outputs: Any, target_sizes: Iterable[Sequence[int]] | None, pixel_mask: Tensor | None
    ) -> list[Tensor]:
        logits = outputs.logits
        if logits.ndim != 4:
            raise ValueError(
                f"`logits` of `outputs` must be maps (batch, num_classes, rows, cols), got {tuple(logits.shape)}. "
                "Those of a model of instances go to `post_process_instance_segmentation`; in a pipeline give "
                "`subtask='instance'`, or `pipeline_class=RadioInstanceSegmentationPipeline` for masks that overlap."
            )
        return self._restore(logits, target_sizes, pixel_mask)

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
        maps = self._restore(depth, target_sizes, pixel_mask)
        return [{"predicted_depth": depth_map.squeeze(0)} for depth_map in maps]

    def post_process_boxes(
        self,
        boxes: Sequence[Tensor],
        target_sizes: Iterable[Sequence[int]],
        input_sizes: Iterable[Sequence[int]],
    ) -> list[Tensor]:
        """Transform boxes to the original images.

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
            They fit the original image, since the model's boxes are shares of the image without padding.
        """
        return self._find_objects(outputs, threshold, target_sizes)[0]

    def post_process_instances(
        self,
        outputs: Any,
        target_sizes: Iterable[Sequence[int]],
        threshold: float = 0.5,
        mask_threshold: float = 0.0,
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return the objects of each image with their masks and boxes, the most certain first; masks may overlap.

        Args:
            outputs: As in `post_process_object_detection`, and `pred_masks` `(batch, num_queries, rows, cols)`.
            target_sizes: Height and width of each original image in pixels.
            threshold: Least score, in [0, 1].
            mask_threshold: A pixel belongs to the object if its logit exceeds this.
            pixel_mask: As the processor returned it with `do_pad`.

        Returns:
            Per image `scores`, `labels`, `boxes` as in `post_process_object_detection`, and `masks`
            `(num_objects, height, width)`, boolean.
        """
        sizes = _to_size_list(target_sizes, len(outputs.logits), "target_sizes")
        objects, queries = self._find_objects(outputs, threshold, sizes)
        maps = _split_maps(outputs.pred_masks, pixel_mask, None)
        for found, chosen, logits, size in zip(objects, queries, maps, sizes, strict=True):
            # One image at a time: full-size float maps of hundreds of queries for a whole batch do not fit in memory.
            found["masks"] = _resize_maps([logits[chosen]], [size])[0] > mask_threshold
        return objects

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Iterable[Sequence[int]] | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """Return the objects of each image in transformers' format; `post_process_instances` also returns boxes.

        Args:
            outputs: Has `logits` and `pred_masks`, or `class_queries_logits` and `masks_queries_logits` of
                `RadioForUniversalSegmentation`. It also takes outputs of semantic segmentation, which the
                `image-segmentation` pipeline of transformers passes: each class is a segment without a score.
            threshold: Least score, in [0, 1].
            mask_threshold: A pixel belongs to the object if its probability exceeds this.
            overlap_mask_area_threshold: In a map each pixel belongs to the most certain object; objects that keep at
                most this share of their pixels are dropped.
            target_sizes: Height and width of each original image in pixels; `None` keeps the masks' own.
            return_coco_annotation: Return the map as run lengths, a list for each segment, background first.
            return_binary_maps: Return a mask for each object instead of a map; masks may overlap.
            pixel_mask: As the processor returned it with `do_pad`.

        Returns:
            Per image `segmentation`, `(height, width)`, int32, the `id` of each pixel's segment or -1, or the chosen
            form; and `segments_info`, for each segment its `id`, `label_id`, `score` and `was_fused` (False).

        Raises:
            ValueError: If a share is not in [0, 1], or if both forms are chosen.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("`return_binary_maps` must be False with `return_coco_annotation`, got True.")
        _check_share("mask_threshold", mask_threshold)
        _check_share("overlap_mask_area_threshold", overlap_mask_area_threshold)
        masks = _field(outputs, "pred_masks", "masks_queries_logits")
        if masks is None:
            scores = self._scores_of_classes(outputs, target_sizes, pixel_mask)
            results = [segments_of_classes(image_scores.argmax(dim=0)) for image_scores in scores]
        else:
            logits = _field(outputs, "logits", "class_queries_logits")
            maps = _split_maps(masks, pixel_mask, None)
            own_sizes = [image_masks.shape[-2:] for image_masks in maps]
            sizes = _to_size_list(own_sizes if target_sizes is None else target_sizes, len(maps), "target_sizes")
            level = torch.tensor(float(mask_threshold)).logit().item()
            results = []
            for image_logits, image_masks, size in zip(logits, maps, sizes, strict=True):
                scores, labels, queries = _rank_objects(image_logits, threshold)
                found = _resize_maps([image_masks[queries]], [size])[0] > level
                if not return_binary_maps:
                    found = divide_pixels(found, overlap_mask_area_threshold)
                results.append(describe_segments(found, scores, labels, return_binary_maps))
        if return_coco_annotation:
            for result in results:
                result["segmentation"] = convert_segmentation_to_rle(result["segmentation"].cpu())
        return results

    def _restore(
        self, maps: Tensor, target_sizes: Iterable[Sequence[int]] | None, pixel_mask: Tensor | None
    ) -> list[Tensor]:
        """Return each image's map without padding, `(channels, height, width)`, in its own size without targets."""
        if target_sizes is None:
            return _split_maps(maps, pixel_mask, None)
        return self.post_process_features(maps, target_sizes, pixel_mask)

    def _find_objects(
        self, outputs: Any, threshold: float, target_sizes: Iterable[Sequence[int]] | None
    ) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
        """Return the results of `post_process_object_detection`, and for each image the queries of the objects."""
        ranked = [_rank_objects(logits, threshold) for logits in outputs.logits]
        queries = [image_queries for _, _, image_queries in ranked]
        corners = box_convert(outputs.pred_boxes, "cxcywh", "xyxy")
        chosen = [image_corners[image_queries] for image_corners, image_queries in zip(corners, queries, strict=True)]
        shares = [(1, 1)] * len(chosen)
        boxes = self.post_process_boxes(chosen, shares if target_sizes is None else target_sizes, shares)
        objects = [
            {"scores": scores, "labels": labels, "boxes": image_boxes}
            for (scores, labels, _), image_boxes in zip(ranked, boxes, strict=True)
        ]
        return objects, queries


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {share}.")


def _field(outputs: Any, *names: str) -> Any:
    """Return the first of the named fields that the outputs of any model or program have, or `None`."""
    return next((getattr(outputs, name) for name in names if getattr(outputs, name, None) is not None), None)


def _split_maps(features: Tensor, pixel_mask: Tensor | None, image_grid_hw: Tensor | None) -> list[Tensor]:
    """Return each image's own map `(channels, rows, cols)`, without padding."""
    if image_grid_hw is not None:
        factor = isqrt(features.shape[0] // max(int(image_grid_hw.prod(dim=-1).sum()), 1))  # of upsampling adaptors
        grids = image_grid_hw * max(factor, 1)
        lengths = grids.prod(dim=-1).tolist()
        if features.ndim != 2 or features.shape[0] != sum(lengths):
            raise ValueError(
                f"`features` of packed images must be ({sum(lengths)}, channels), as many as `image_grid_hw` has "
                f"patches, got {tuple(features.shape)}."
            )
        parts = zip(features.split(lengths), grids.tolist(), strict=True)
        return [part.T.unflatten(1, grid) for part, grid in parts]
    if features.ndim != 4:
        raise ValueError(f"`features` must be (batch, channels, rows, cols), got {tuple(features.shape)}.")
    if pixel_mask is None:
        return list(features)
    rows = pixel_mask[:, :, 0].sum(dim=1) * features.shape[2] // pixel_mask.shape[1]
    cols = pixel_mask[:, 0, :].sum(dim=1) * features.shape[3] // pixel_mask.shape[2]
    extents = zip(rows.tolist(), cols.tolist(), strict=True)
    return [feature_map[:, :r, :c] for feature_map, (r, c) in zip(features, extents, strict=True)]


def _resize_maps(maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Resize each map `(channels, rows, cols)` to its size; maps of one shape and one size are resized together."""
    groups = defaultdict(list)
    for index, (image_map, size) in enumerate(zip(maps, sizes, strict=True)):
        groups[image_map.shape[1:], size].append(index)
    resized: dict[int, Tensor] = {}
    for (_, size), indices in groups.items():
        # Channels become the batch axis, the only one that may be empty: an image without objects has no masks.
        joined = torch.cat([maps[index] for index in indices]).unsqueeze(1)
        joined = F.interpolate(joined, size=size, mode="bilinear", align_corners=False).squeeze(1)
        resized |= zip(indices, joined.split([len(maps[index]) for index in indices]), strict=True)
    return [resized[index] for index in range(len(maps))]


def _rank_objects(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return score, class and query of one image's objects; a query may have several classes.

    As in the deformable DETR family, the best `num_queries` pairs of query and class compete.
    """
    num_queries, num_classes = logits.shape
    scores, pairs = logits.float().sigmoid().flatten().topk(num_queries)
    certain = scores > threshold
    pairs = pairs[certain]
    return scores[certain], pairs % num_classes, pairs // num_classes


def _to_size_list(sizes: Iterable[Sequence[int]], count: int, name: str) -> list[tuple[int, int]]:
    """Return heights and widths as integers, one pair for each of `count` images; `sizes` may be a tensor."""
    pairs = [(int(height), int(width)) for height, width in sizes]
    if len(pairs) != count:
        raise ValueError(f"`{name}` must have one (height, width) for each of the {count} images, got {len(pairs)}.")
    return pairs
