"""Segments of an image as transformers describes them: a map of numbers, or masks, and what each of them is.

From outputs of the models back to the original images: maps, labels, depths, boxes and masks.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.models.detr.image_processing_detr import convert_segmentation_to_rle


NO_SEGMENT = -1


def divide_pixels(masks: Tensor, least_share: float) -> Tensor:
    """Return masks that do not overlap: each pixel goes to the first that has it.

    Args:
        masks: `(n, height, width)`, boolean, the most certain first.
        least_share: Masks of which not more than this share is left become empty, and their pixels free again.

    Returns:
        Of the same shape.
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
        masks: `(n, height, width)`, boolean; empty ones are no segments.
        scores: `(n,)`.
        labels: `(n,)`.
        as_masks: Whether `segmentation` is a mask for each segment `(segments, height, width)`, or one map, where later
            masks lie on earlier ones.
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
    """Return the classes of one image `(height, width)` as segments, numbered by their class and without a score."""
    found = class_map.unique().tolist()
    segments = [{"id": label, "label_id": label, "was_fused": False, "score": None} for label in found]
    return {"segmentation": class_map.to(torch.int32), "segments_info": segments}


class PostProcessing:
    """The `post_process_*` methods of `RadioImageProcessor`, where transformers' stock pipelines call them."""

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
        return _resize_maps(maps, _to_size_list(target_sizes, len(maps), "target_sizes"))

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
            return_segmentation_scores: Whether to return each image's logits, too.

        Returns:
            One integer tensor `(height, width)` per image; with scores an output of transformers that has it as
            `segmentation`, and as `segmentation_scores` the logits there, `(num_classes, height, width)`.

        Raises:
            ValueError: If the outputs are those of a model of instances.
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
            mask_threshold: A pixel belongs to the object where its logit exceeds this.
            pixel_mask: As the processor returned it with `do_pad`.

        Returns:
            Per image `scores`, `labels`, `boxes` as in `post_process_object_detection`, and `masks`
            `(num_objects, height, width)`, boolean.
        """
        sizes = _to_size_list(target_sizes, len(outputs.logits), "target_sizes")
        objects, queries = self._find_objects(outputs, threshold, sizes)
        maps = _split_maps(outputs.pred_masks, pixel_mask, None)
        for found, chosen, logits, size in zip(objects, queries, maps, sizes, strict=True):
            # One image at a time: the float maps of hundreds of queries in full size would not fit for a whole batch.
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
        """Return the objects of each image as transformers' processors do; `post_process_instances` keeps boxes too.

        Args:
            outputs: Has `logits` and `pred_masks`, or as `class_queries_logits` and `masks_queries_logits` the same of
                `RadioForUniversalSegmentation`. Outputs of semantic segmentation are taken as well, since the stock
                `image-segmentation` pipeline brings them here: each class is one segment without a score.
            threshold: Least score, in [0, 1].
            mask_threshold: A pixel belongs to the object where its probability exceeds this.
            overlap_mask_area_threshold: In a map, where each pixel goes to the most certain object, objects of which
                not more than this share is left are dropped.
            target_sizes: Height and width of each original image in pixels; `None` keeps the masks' own.
            return_coco_annotation: Give the map as run lengths, a list for each segment, background first.
            return_binary_maps: Give a mask for each object instead, which may overlap.
            pixel_mask: As the processor returned it with `do_pad`.

        Returns:
            Per image `segmentation`, `(height, width)`, int32, the `id` of each pixel's segment or -1, or as asked for;
            and `segments_info`, for each segment its `id`, `label_id`, `score` and `was_fused` (False).

        Raises:
            ValueError: If a share is not in [0, 1], or two forms are wanted at once.
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
        """Return each image's map without padding, `(channels, height, width)`; no target sizes keep the map's own."""
        if target_sizes is None:
            return _split_maps(maps, pixel_mask, None)
        return self.post_process_features(maps, target_sizes, pixel_mask)

    def _find_objects(
        self, outputs: Any, threshold: float, target_sizes: Iterable[Sequence[int]] | None
    ) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
        """Return what `post_process_object_detection` does, and for each image the queries that saw the objects."""
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
    """Return the first of some fields that outputs have; they come from models, pipelines and other programs."""
    present = [getattr(outputs, name) for name in names if getattr(outputs, name, None) is not None]
    return present[0] if present else None


def _split_maps(features: Tensor, pixel_mask: Tensor | None, image_grid_hw: Tensor | None) -> list[Tensor]:
    """Return each image's own map `(channels, rows, cols)`, without padding."""
    if image_grid_hw is not None:
        lengths = image_grid_hw.prod(dim=-1).tolist()
        if features.ndim != 2 or features.shape[0] != sum(lengths):
            raise ValueError(
                f"`features` of packed images must be ({sum(lengths)}, channels), as many as `image_grid_hw` has "
                f"patches, got {tuple(features.shape)}."
            )
        parts = zip(features.split(lengths), image_grid_hw.tolist(), strict=True)
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
    """Return each map `(channels, rows, cols)` in its size; maps of one shape and one size are resized at once."""
    groups = defaultdict(list)
    for index, (image_map, size) in enumerate(zip(maps, sizes, strict=True)):
        groups[image_map.shape[1:], size].append(index)
    resized: dict[int, Tensor] = {}
    for (_, size), indices in groups.items():
        # Channels stand in the batch axis, the only one that may be empty: an image without objects has no masks.
        joined = torch.cat([maps[index] for index in indices]).unsqueeze(1)
        joined = F.interpolate(joined, size=size, mode="bilinear", align_corners=False).squeeze(1)
        resized |= zip(indices, joined.split([len(maps[index]) for index in indices]), strict=True)
    return [resized[index] for index in range(len(maps))]


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
    """Return heights and widths as integers, one pair for each of `count` images; a tensor of sizes is one too."""
    pairs = [(int(height), int(width)) for height, width in sizes]
    if len(pairs) != count:
        raise ValueError(f"`{name}` must have one (height, width) for each of the {count} images, got {len(pairs)}.")
    return pairs
