"""Answers of a task model by its pipeline: classes, objects, maps of classes, depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import pipeline

from modeling_radio import (
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForZeroShotImageClassification,
    class_of,
)
from modeling_radio.core.opening import Opened, network_fingerprint
from modeling_radio.core.settings import hash_of
from modeling_radio.figures.predictions import OVERFLOW, check_tiles, is_finite
from modeling_radio.pipelines_radio import RadioObjectDetectionPipeline, limits_of
from modeling_radio.tasks_radio import PIPELINES
from modeling_radio.views_radio import ViewOptions


CLASSES, OBJECTS, SEGMENTS, DEPTH = "classes", "objects", "segments", "depth"
"""Kinds of answers, the key of each in a line of JSON."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
"""Names of a pipeline's sides of a box."""
_KIND_OF_TASK = {
    "image-classification": CLASSES,
    "zero-shot-image-classification": CLASSES,
    "object-detection": OBJECTS,
    "image-segmentation": SEGMENTS,
    "depth-estimation": DEPTH,
}
MOST_PIXELS = 2_000_000
"""Size to which larger images are reduced before the model answers. Our choice: far above what models see, and the
scores of 100 classes at this size take 0.8 GB."""
DEPTH_STEPS = (1000, 256, 100, 10, 1)
"""Steps of a stored depth in a unit of the labels, the most that fit into 16 bits: millimeters for meters, as NYU and
ScanNet store them, else 1 / 256 as KITTI does. The last ones are our choice."""


@dataclass(frozen=True)
class Answer:
    """Answer of a model for one image.

    Attributes:
        values: Plain data: `classes`, `objects`, `segments` or `depth`; or `error`, why there is none.
        image: A map at the size of the image, `(height, width)`: ids of classes (uint8, or uint16 for more than 256
            classes), or the depth in `steps` a unit (uint16); None for the other kinds.
    """

    values: dict[str, Any]
    image: np.ndarray | None = None


NOT_FINITE = Answer({"error": OVERFLOW})
"""Answer for an image whose outputs overflow or are NaN."""


class FiniteAnswers:
    """Mixin of pipelines: None is the answer for an image whose outputs are not finite."""

    model: Any

    def postprocess(self, model_outputs: Any, *args: Any, **options: Any) -> Any:
        """Return the answer for one image; arguments as in the base class."""
        if not is_finite(model_outputs, may_drop=isinstance(self.model, RadioForObjectDetection)):
            return None
        return super().postprocess(model_outputs, *args, **options)  # pyrefly: ignore[missing-attribute]


class _ExactBoxes(RadioObjectDetectionPipeline):
    """The pipeline with the fractions of pixels that transformers cuts off: boxes score as in `radio evaluate`."""

    def _get_bounding_box(self, box: Tensor) -> dict[str, float]:  # pyrefly: ignore[bad-override]
        return dict(zip(SIDES, box.tolist(), strict=True))


@dataclass
class Answering:
    """A model that answers for images, as its pipeline does.

    Args:
        opened: The model.
        words: Classes of a zero-shot model.
        threshold: Least score of classes or objects, or "tuned" for that of each class; None for the pipeline's.
        tiles: Overlapping tiles in which the model sees images, for maps and boxes.

    Raises:
        ValueError: If the model has no task, or the words do not fit it.
    """

    opened: Opened
    words: Sequence[str] | None = None
    threshold: float | str | None = None
    tiles: ViewOptions | None = None
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        model, task = self.opened.model, self.opened.task
        if task is None:
            raise ValueError(
                f"`checkpoint` must be a model tuned for a task, got {self.opened.checkpoint!r}, "
                f"a {type(model).__name__}. "
                "`radio extract` writes its features."
            )
        is_zero_shot = isinstance(model, RadioForZeroShotImageClassification)
        if is_zero_shot != bool(self.words):
            need = "names" if is_zero_shot else "must be left out: the model has its own"
            raise ValueError(f"`classes` {need} the classes of a zero-shot model, got {self.words!r}.")
        if self.words and len(set(self.words)) < len(self.words):
            raise ValueError(f"`classes` must be words of which none is given twice, got {self.words!r}.")
        number_equal_names(model.config)
        is_of_instances = isinstance(model, RadioForInstanceSegmentation)
        self.kind = OBJECTS if is_of_instances else _KIND_OF_TASK[task.pipeline]
        if self.threshold is not None:
            if is_zero_shot or self.kind not in (CLASSES, OBJECTS):
                raise ValueError(f"`threshold` must be left out for {task.pipeline}, got {self.threshold!r}.")
            limits_of(model.config, self.threshold)
        impl = class_of((PIPELINES | task.own_pipelines)[task.pipeline].impl)
        if self.tiles is not None:
            check_tiles(model, self.tiles)
        impl = _ExactBoxes if impl is RadioObjectDetectionPipeline else impl
        build: Any = pipeline  # its overloads know no models but those of transformers
        self._pipeline = build(
            task.pipeline,
            model=model,
            image_processor=self.opened.processor,
            tokenizer=self.opened.tokenizer,
            pipeline_class=type(impl.__name__, (FiniteAnswers, impl), {}),
            device=model.device,
        )

    @property
    def class_names(self) -> Mapping[int, str]:
        """Names of the classes by id."""
        return dict(enumerate(self.words)) if self.words else self.opened.class_names

    def identity(self) -> dict[str, str]:
        """Return hashes of the weights, and of how images and words are prepared."""
        return identity_of(self.opened.model, self.opened.processor, self.opened.tokenizer)

    def __call__(self, images: Sequence[Image.Image]) -> list[Answer]:
        """Return the answers for a batch of RGB images, each of at most `MOST_PIXELS` unless there are tiles."""
        options: dict[str, Any] = {"batch_size": len(images)}
        if self.tiles is not None:
            options = {"batch_size": 1, "tile_size": self.tiles.tile_size, "tile_overlap": self.tiles.tile_overlap}
        if self.threshold is not None:
            options["threshold"] = self.threshold
        elif self.kind == CLASSES and not self.words:
            options["top_k"] = None
        if self.words:
            options["candidate_labels"] = list(self.words)
        numbers = {name: number for number, name in self.class_names.items()}
        # A data set, whose results come one by one: a list's would all be in memory at once.
        found = self._pipeline(_ImageList(images), **options)
        read = _READERS[self.kind]
        pairs = zip(found, images, strict=True)
        return [NOT_FINITE if each is None else read(each, image.size, numbers) for each, image in pairs]


def number_equal_names(config: Any) -> None:
    """Add their number to the names of classes that share one, as ImageNet's "crane" and "maillot" do, in place."""
    names: dict[int, str] = dict(config.id2label)
    while len(set(names.values())) < len(names):
        counts = Counter(names.values())
        names = {number: f"{name} ({number})" if counts[name] > 1 else name for number, name in names.items()}
    config.id2label, config.label2id = names, {name: number for number, name in names.items()}


def identity_of(model: Any, processor: Any, tokenizer: Any) -> dict[str, str]:
    """Return hashes of a model's weights, and of what prepares its images and words; the tokenizer may be None."""
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    prepared = hash_of({"processor": processor.to_json_string(), "vocabulary": vocabulary})[:16]
    return {"model": network_fingerprint(model), "processor": prepared}


class _ImageList(Dataset[Image.Image]):
    def __init__(self, images: Sequence[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[index]


def reduced(image: Image.Image) -> Image.Image:
    """Return an image of at most `MOST_PIXELS`."""
    if image.width * image.height <= MOST_PIXELS:
        return image
    scale = (MOST_PIXELS / (image.width * image.height)) ** 0.5
    width, height = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize((min(width, MOST_PIXELS // height), min(height, MOST_PIXELS // width)))


def with_boxes_of(answer: Answer, old: tuple[int, int], new: tuple[int, int]) -> dict[str, Any]:
    """Return the values of an answer with boxes in pixels of the image at another size.

    Args:
        answer: The answer.
        old: Width and height of the image that it is for.
        new: The other width and height.
    """
    if OBJECTS not in answer.values or old == new:
        return answer.values
    scales = [after / before for before, after in zip(old * 2, new * 2, strict=True)]
    objects = [
        {**each, "box": [side * scale for side, scale in zip(each["box"], scales, strict=True)]}
        for each in answer.values[OBJECTS]
    ]
    return {**answer.values, OBJECTS: objects}


def at_size(answer: Answer, old: tuple[int, int], new: tuple[int, int]) -> Answer:
    """Return an answer for the image at another size; arguments are those of `with_boxes_of`."""
    if old == new:
        return answer
    values, image = with_boxes_of(answer, old, new), answer.image
    if OBJECTS in values:
        values[OBJECTS] = [
            {**each, "mask": run_lengths(_resized(mask_of(each["mask"]), new))} if "mask" in each else each
            for each in values[OBJECTS]
        ]
    return Answer(values, None if image is None else _resized(image, new))


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map at another width and height, by the nearest value."""
    rows, cols = ((np.arange(new) + 0.5) * old / new for new, old in zip(size[::-1], values.shape, strict=True))
    return values[rows.astype(int)][:, cols.astype(int)]


def _read_classes(found: Any, size: tuple[int, int], numbers: Mapping[str, int]) -> Answer:
    return Answer({CLASSES: [{"label": each["label"], "score": float(each["score"])} for each in found]})


def _read_objects(found: Any, size: tuple[int, int], numbers: Mapping[str, int]) -> Answer:
    return read_objects(found)


def read_objects(found: Sequence[Mapping[str, Any]]) -> Answer:
    """Return the answer of a pipeline's objects; a box is the pipeline's, or that of the mask."""
    objects = []
    for each in found:
        one = {"label": each["label"], "score": float(each["score"])}
        mask = np.asarray(each["mask"]) > 0 if "mask" in each else None
        one["box"] = [float(each["box"][side]) for side in SIDES] if mask is None or "box" in each else box_of(mask)
        objects.append(one if mask is None else {**one, "mask": run_lengths(mask)})
    return Answer({OBJECTS: objects})


def _read_segments(found: Any, size: tuple[int, int], numbers: Mapping[str, int]) -> Answer:
    width, height = size
    indices = np.zeros((height, width), np.uint8 if len(numbers) <= 256 else np.uint16)
    shares = []
    for each in found:
        mask = np.asarray(each["mask"]) > 0
        indices[mask] = numbers[each["label"]]
        shares.append({"label": each["label"], "share": float(mask.mean())})
    return Answer({SEGMENTS: shares}, indices)


def _read_depth(found: Any, size: tuple[int, int], numbers: Mapping[str, int]) -> Answer:
    depth = np.asarray(found["predicted_depth"], np.float64)
    depth = depth.reshape(depth.shape[-2:]).clip(0)
    largest = np.iinfo(np.uint16).max
    steps = next((each for each in DEPTH_STEPS if each * depth.max() <= largest), DEPTH_STEPS[-1])
    values = {"min": float(depth.min()), "max": float(depth.max()), "steps": steps}
    return Answer({DEPTH: values}, (depth * steps).clip(0, largest).round().astype(np.uint16))


_READERS = {CLASSES: _read_classes, OBJECTS: _read_objects, SEGMENTS: _read_segments, DEPTH: _read_depth}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask `(height, width)` in COCO's compressed run lengths."""
    from pycocotools import mask as coco_mask

    encoded: Any = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def mask_of(lengths: Mapping[str, Any]) -> np.ndarray:
    """Return the mask `(height, width)` of COCO's compressed run lengths."""
    from pycocotools import mask as coco_mask

    encoded: Any = {**lengths, "counts": lengths["counts"].encode("ascii")}
    return coco_mask.decode(encoded)


def box_of(mask: np.ndarray) -> list[float]:
    """Return left, top, right and bottom of a mask `(height, width)` in pixels; zeros if it is empty."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0] * 4
    return [float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1)]
