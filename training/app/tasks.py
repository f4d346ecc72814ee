"""Answers of tuned models, one kind for each task: scores, regions, boxes, masks or depths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from modeling_radio import (
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
)
from modeling_radio.class_scores_radio import class_scores
from modeling_radio.pipeline_parts_radio import limits_of
from training.app.answers import Report
from training.app.drawing import heat_picture, shown
from training.app.opening import Opened
from training.app.photographs import read_photograph
from training.app.words import Annotated


OBJECTS = (RadioForObjectDetection, RadioForInstanceSegmentation)
"""Models whose answers count from a score on."""
MAX_OBJECTS = 50
"""That are drawn, the most certain ones; our choice."""


@dataclass(frozen=True)
class Prediction:
    """What a tuned model says of a photograph; what the task has not is None.

    Attributes:
        regions: The photograph with masks or boxes and their labels.
        scores: Of the labels of the whole photograph, in [0, 1].
        picture: Depth in colors.
        told: The answer in words.
    """

    told: str
    regions: Annotated | None = None
    scores: dict[str, float] | None = None
    picture: Image.Image | None = None


@torch.inference_mode()
def predict(opened: Opened, image: str | None, threshold: float | str, report: Report = lambda *_: None) -> Prediction:
    """Return what a tuned model says of a photograph, at the size that its processor says.

    Args:
        opened: A model with a head.
        image: File of a photograph.
        threshold: Least score of objects, in [0, 1], or "tuned" for that of each class in the configuration.
        report: Is told of progress.

    Raises:
        ValueError: On what cannot be; the message names it.
    """
    model, processor = opened.model, opened.processor
    if not opened.has_head:
        raise ValueError(f"`checkpoint` must be a model tuned for a task, got {opened.checkpoint!r}.")
    limits = limits_of(model.config, threshold) if isinstance(model, OBJECTS) else {}
    photograph = read_photograph(image, processor)
    report(0.1, "running the network")
    inputs = processor(photograph, return_tensors="pt").to(model.device, model.dtype)
    outputs: Any = model(**inputs)
    report(0.8, "drawing")
    small = shown(photograph)
    read = next(read for model_class, read in READERS if isinstance(model, model_class))
    return read(opened, outputs, small, {"mask": inputs.get("pixel_mask"), "limits": limits})


def names_of(opened: Opened) -> dict[int, str]:
    """Return the names of a model's classes."""
    return cast(dict[int, str], opened.model.config.id2label)


def _classes(opened: Opened, outputs: Any, _photograph: Tensor, _options: dict[str, Any]) -> Prediction:
    config, names = opened.model.config, names_of(opened)
    scores = {names[index]: score for index, score in enumerate(class_scores(outputs.logits[0], config).tolist())}
    if config.problem_type == "regression":
        return Prediction(", ".join(f"{name} {number:.3g}" for name, number in scores.items()) + ".", scores={})
    best = max(scores, key=lambda name: scores[name])
    return Prediction(f"{best}, {scores[best]:.2f}.", scores=scores)


def _regions(opened: Opened, outputs: Any, photograph: Tensor, options: dict[str, Any]) -> Prediction:
    outputs.logits = outputs.logits.float()
    sizes = [tuple(photograph.shape[-2:])]
    post_process = opened.processor.post_process_semantic_segmentation
    labels = post_process(outputs, sizes, pixel_mask=options["mask"])[0].cpu()
    names = names_of(opened)
    regions = [((labels == index).numpy(), names[index]) for index in labels.unique().tolist()]
    shares = ", ".join(f"{name} {100 * mask.mean():.0f} %" for mask, name in regions)
    return Prediction(f"Share of the photograph: {shares}.", regions=(to_pil_image(photograph), regions))


def _depth(opened: Opened, outputs: Any, photograph: Tensor, options: dict[str, Any]) -> Prediction:
    size = tuple(photograph.shape[-2:])
    found = opened.processor.post_process_depth_estimation(outputs, [size], pixel_mask=options["mask"])
    depth = found[0]["predicted_depth"].cpu()
    near, far = float(depth.min()), float(depth.max())
    picture = heat_picture((depth - near) / max(far - near, 1e-12), size)
    return Prediction(f"Depth from {near:.3g} (dark) to {far:.3g}, in the unit of its labels.", picture=picture)


def _boxes(opened: Opened, outputs: Any, photograph: Tensor, options: dict[str, Any]) -> Prediction:
    limits, sizes = options["limits"], [tuple(photograph.shape[-2:])]
    found = opened.processor.post_process_object_detection(_in_float(outputs), min(limits.values()), sizes)[0]
    boxes = [tuple(box) for box in found["boxes"].round().int().tolist()]
    objects = list(zip(boxes, found["labels"].tolist(), found["scores"].tolist(), strict=True))
    return _objects(opened, photograph, objects, limits)


def _segments(opened: Opened, outputs: Any, photograph: Tensor, options: dict[str, Any]) -> Prediction:
    limits, sizes = options["limits"], [tuple(photograph.shape[-2:])]
    found = opened.processor.post_process_instance_segmentation(
        _in_float(outputs),
        min(limits.values()),
        target_sizes=sizes,
        pixel_mask=options["mask"],
        return_binary_maps=True,
    )[0]
    masks = found["segmentation"].cpu().numpy()
    infos = found["segments_info"]
    objects = [(mask, info["label_id"], info["score"]) for mask, info in zip(masks, infos, strict=True)]
    return _objects(opened, photograph, objects, limits)


def _objects(
    opened: Opened, photograph: Tensor, found: list[tuple[Any, int, float]], limits: dict[str, float]
) -> Prediction:
    """Return objects as regions: those whose score exceeds that of their class, the most certain first."""
    names = names_of(opened)
    kept = [(region, names[label], score) for region, label, score in found if score > limits[names[label]]]
    kept.sort(key=lambda each: -each[2])
    regions = [(region, f"{name} {score:.2f}") for region, name, score in kept[:MAX_OBJECTS]]
    more = f", of which {MAX_OBJECTS} are drawn" if len(kept) > MAX_OBJECTS else ""
    noun = "object" if len(kept) == 1 else "objects"
    return Prediction(f"{len(kept)} {noun}{more}.", regions=(to_pil_image(photograph), regions))


def _in_float(outputs: Any) -> Any:
    """Return the outputs with tensors of half precision as float32, in which boxes and masks are resized."""
    for name, value in outputs.items():
        if torch.is_tensor(value) and value.is_floating_point():
            outputs[name] = value.float()
    return outputs


READERS = (
    (RadioForImageClassification, _classes),
    (RadioForSemanticSegmentation, _regions),
    (RadioForDepthEstimation, _depth),
    (RadioForInstanceSegmentation, _segments),
    (RadioForObjectDetection, _boxes),
)
"""By class what reads its outputs."""
