"""Pipelines that add to those of transformers: batches of several sizes, several views, tuned thresholds.

`config.json` names them, so that `pipeline` finds them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from transformers import (
    DepthEstimationPipeline,
    ImageClassificationPipeline,
    ImageFeatureExtractionPipeline,
    ImageSegmentationPipeline,
    ObjectDetectionPipeline,
    Pipeline,
    VideoClassificationPipeline,
    ZeroShotImageClassificationPipeline,
)
from transformers.image_utils import load_image

from .image_processing_radio import OWN_SIZE, RadioImageProcessor, read_image
from .post_processing_radio import Reading, reading_of, tempered
from .regions_radio import find_regions
from .tasks_radio import INSTANCE_SEGMENTER
from .views_radio import ViewOptions, encode_tiles


VIEW_OPTIONS = ("tile_size", "tile_overlap", "scales", "flip", "nms_threshold")
"""Options of `predict` of the task models."""


class AnySizeBatches:
    """Mixin: images of different sizes with `batch_size=`; images of one size run together.

    transformers concatenates the tensors of a batch, which requires one size, but keeps lists. So each tensor is in a
    list until the model runs. Results are those of one image at a time. The model returns outputs by name, which
    pipelines read, whatever its configuration says. Padding of a processor with `do_pad` is cut off, since pipelines of
    transformers do not distinguish it from the image.
    """

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model: its own folder names this class."""

    def preprocess(self, *args: Any, **options: Any) -> Any:
        """Return the inputs of one image without padding, tensors in lists."""
        inputs = super().preprocess(*args, **options)  # pyrefly: ignore[missing-attribute]
        mask = inputs.pop("pixel_mask", None)
        if mask is not None:
            rows, cols = int(mask[0, :, 0].sum()), int(mask[0, 0].sum())
            inputs["pixel_values"] = inputs["pixel_values"][..., :rows, :cols]
        for name, value in inputs.items():
            inputs[name] = [value] if isinstance(value, Tensor) else value
        return inputs

    def _forward(self, model_inputs: Any, **options: Any) -> Any:
        run = super()._forward  # pyrefly: ignore[missing-attribute]
        if isinstance(model_inputs["pixel_values"][0], Tensor):  # one image, not in a batch
            image = {name: unwrap(value) for name, value in model_inputs.items()}
            return run({**image, "return_dict": True}, **options)
        count = len(model_inputs["pixel_values"])
        images = [{name: unwrap(values[index]) for name, values in model_inputs.items()} for index in range(count)]
        groups: dict[Any, list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image["pixel_values"].shape, []).append(index)
        joined = [_join([images[index] for index in group]) for group in groups.values()]
        outputs = [run({**inputs, "return_dict": True}, **options) for inputs in joined]
        return outputs[0] if len(outputs) == 1 else _merge(outputs, list(groups.values()))


def unwrap(value: Any) -> Any:
    """Return a tensor without the list around it."""
    return value[0] if isinstance(value, list) and value and isinstance(value[0], Tensor) else value


def _join(images: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the inputs of images of one size as transformers joins them."""
    joined = {name: [image[name] for image in images] for name in images[0]}
    return {name: torch.cat(values) if isinstance(values[0], Tensor) else values for name, values in joined.items()}


def _merge(outputs: list[Any], groups: list[list[int]]) -> Any:
    """Join the outputs of several groups of images, in the order of the images.

    Args:
        outputs: One for each group, batch first.
        groups: Positions of each group's images.
    """
    merged = {}
    for name, first in outputs[0].items():
        if not isinstance(first, (Tensor, list)):
            continue  # no pipeline returns hidden states, attentions or adaptors
        by_image = {
            index: value
            for output, group in zip(outputs, groups, strict=True)
            for index, value in zip(group, output[name], strict=True)
        }
        values = [by_image[index] for index in range(len(by_image))]
        is_one_shape = isinstance(first, Tensor) and len({value.shape for value in values}) == 1
        merged[name] = torch.stack(values) if is_one_shape else values
    return type(outputs[0])(merged)


def limits_of(config: Any, threshold: float | str) -> dict[str, float]:
    """Return the threshold of each label.

    Args:
        config: Configuration of the model.
        threshold: A number in [0, 1] for all labels, or "tuned" for `config.score_thresholds`.

    Raises:
        ValueError: If it is something else, or the configuration has no thresholds.
    """
    names = [config.id2label[number] for number in range(config.num_labels)]
    if threshold == "tuned":
        if config.score_thresholds is None or len(config.score_thresholds) != len(names):
            raise ValueError(
                f"`threshold` 'tuned' needs `score_thresholds` of the {len(names)} classes in the configuration, got "
                f"{config.score_thresholds}."
            )
        return dict(zip(names, config.score_thresholds, strict=True))
    if isinstance(threshold, str) or not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` must be a number in [0, 1] or 'tuned', got {threshold!r}.")
    return dict.fromkeys(names, threshold)


def limits_or_default(config: Any, threshold: float | str) -> dict[str, float]:
    """Return `limits_of`; "tuned" without thresholds in the configuration means 0.5, the default of transformers."""
    is_missing = threshold == "tuned" and config.score_thresholds is None
    return limits_of(config, 0.5 if is_missing else threshold)


def above(found: list[dict[str, Any]], limits: dict[str, float] | None) -> list[dict[str, Any]]:
    """Return the results whose score exceeds their label's threshold."""
    return found if limits is None else [result for result in found if result["score"] > limits[result["label"]]]


class TiledInference(AnySizeBatches):
    """Mixin: several views of an image, with the options of `ViewOptions` and of the model's `predict`.

    With `tile_size` images keep their own size, rounded to whole patches; the processor otherwise reduces them.
    `stock_options` are those of transformers' class: three of its four ignore any other without a word.
    """

    view_options: tuple[str, ...] = VIEW_OPTIONS[:4]
    stock_options: tuple[str, ...] = ("threshold", "timeout")
    model: Any
    image_processor: Any
    dtype: torch.dtype

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        refused = [name for name in VIEW_OPTIONS if name in kwargs and name not in self.view_options]
        if refused:
            raise ValueError(f"`{refused[0]}` must be left out: {type(self).__name__} has {self.view_options}.")
        refuse_unknown(kwargs, (*self.view_options, *self.stock_options), "and those of every pipeline")
        views = {name: kwargs.pop(name) for name in self.view_options if name in kwargs}
        before, forward, after = super()._sanitize_parameters(**kwargs)  # pyrefly: ignore[missing-attribute]
        if views.get("tile_size") is not None:
            before = {**before, "keeps_size": True}
        return before, {**forward, **views}, after

    def preprocess(self, image: Any, *args: Any, keeps_size: bool = False, **options: Any) -> Any:
        """Return the inputs of one image, with `keeps_size` in its own size."""
        if not keeps_size:
            return super().preprocess(image, *args, **options)
        image = load_image(image, timeout=options.get("timeout"))
        inputs = super().preprocess(image, *args, **options)
        pixels = self.image_processor(images=[image], return_tensors="pt", **OWN_SIZE)
        inputs["pixel_values"] = [pixels["pixel_values"].to(self.dtype)]
        return inputs

    def _forward(self, model_inputs: Any, **options: Any) -> Any:
        views = {name: options.pop(name) for name in self.view_options if name in options}
        if not views:
            return super()._forward(model_inputs, **options)
        is_joined = not isinstance(model_inputs["pixel_values"][0], Tensor)
        if is_joined:
            count = len(model_inputs["pixel_values"])
            if count > 1:
                raise ValueError(f"`batch_size` must be 1 with {', '.join(map(repr, views))}, got {count}.")
            model_inputs = {name: value[0] for name, value in model_inputs.items()}
        outputs = self.model.predict(unwrap(model_inputs["pixel_values"]), **views)
        if "target_size" in model_inputs:
            size = unwrap(model_inputs["target_size"])
            # transformers splits a batch's tensors and lists along their first axis.
            outputs["target_size"] = [size] if is_joined and not isinstance(size, Tensor) else size
        return outputs


NUM_FRAMES = 8
"""Frames of a video that a pipeline reads by default (our choice; CLIP4Clip reads 12 of longer clips)."""


class _FeatureExtraction(ImageFeatureExtractionPipeline):
    """Transformers' pipeline with options for the model."""

    model: Any

    # pyrefly: ignore[bad-override]
    def _forward(self, model_inputs: Any, tiles: ViewOptions | None = None, **options: Any) -> Any:
        if tiles is None:
            return self.model(**model_inputs, **options)
        pixels, as_map = model_inputs.pop("pixel_values"), {**options, "feature_format": "NCHW"}
        output: Any = encode_tiles(
            self.model.config, pixels, lambda crop: self.model(crop, **model_inputs, **as_map), tiles
        )
        if options.get("feature_format") != "NCHW":
            output.features = output.features.flatten(2).transpose(1, 2)  # (batch, dim, rows, cols) -> NLC
        return output


class RadioImageFeatureExtractionPipeline(AnySizeBatches, _FeatureExtraction):
    """Transformers' `image-feature-extraction` with batches of any sizes: summaries, or dense features.

    Options, of the pipeline or of a call, besides `return_tensors`, `timeout` and `image_processor_kwargs`:

    - `pool`: True or None for the summary, `(1, num_summaries * hidden_size)`; False for the features of the patches,
      `(1, num_patches, hidden_size)`.
    - `feature_format`: "NLC" for these, or "NCHW" for the map `(1, hidden_size, rows, cols)`; it implies `pool=False`.
    - `tile_size`, `tile_overlap`: see the image in its own size, in overlapping tiles, as `ViewOptions` have them.

    Any other option is a `ValueError`.
    """

    # pyrefly: ignore[bad-override]
    def _sanitize_parameters(self, pool: bool | None = None, feature_format: str | None = None, **kwargs: Any) -> Any:
        tiles = {name: kwargs.pop(name) for name in VIEW_OPTIONS[:2] if name in kwargs}
        known = ("return_tensors", "timeout", "image_processor_kwargs", *VIEW_OPTIONS[:2])
        refuse_unknown(kwargs, known, "`pool` and `feature_format`")
        if pool and feature_format is not None:
            raise ValueError(f"`feature_format` {feature_format!r} is of dense features: leave it or `pool` out.")
        before, _, after = super()._sanitize_parameters(**kwargs)
        is_dense = pool is False or feature_format is not None
        forward: dict[str, Any] = {} if feature_format is None else {"feature_format": feature_format}
        if tiles.get("tile_size") is not None:
            before, forward = {**OWN_SIZE, **before}, {**forward, "tiles": ViewOptions(**tiles)}
        return before, forward, after if pool is None and not is_dense else {**after, "pool": not is_dense}

    # pyrefly: ignore[bad-override]
    def postprocess(self, model_outputs: Any, pool: bool = True, return_tensors: bool = False) -> Any:
        """Return the summary, or without `pool` the features, as a tensor or as nested lists."""
        found = model_outputs["summary" if pool else "features"]
        return found if return_tensors else found.tolist()


def refuse_unknown(given: dict[str, Any], known: tuple[str, ...], others: str) -> None:
    """Raise a `ValueError` that names the first option that a pipeline has not.

    Args:
        given: Options.
        known: Names of those that it has.
        others: More of them, in words.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"`{unknown[0]}` is no option of this pipeline: it has {', '.join(known)}, {others}.")


class RadioImageClassificationPipeline(TiledInference, ImageClassificationPipeline):
    """Transformers' `image-classification` with batches of any sizes, `scales` and `flip`.

    Scores are those of logits divided by `config.temperature`. `threshold` drops labels with lower scores: a number, or
    "tuned" for each label's threshold in `config.score_thresholds`.
    """

    view_options = ("scales", "flip")
    stock_options = ("top_k", "function_to_apply", "timeout")

    # pyrefly: ignore[bad-override]
    def _sanitize_parameters(self, threshold: float | str | None = None, **kwargs: Any) -> Any:
        before, forward, after = super()._sanitize_parameters(**kwargs)
        if threshold is not None:  # applies to all labels unless the caller sets `top_k`
            every = {"top_k": self.model.config.num_labels}
            after = {**every, **after, "limits": limits_of(self.model.config, threshold)}
        return before, forward, after

    # pyrefly: ignore[bad-override]
    def postprocess(self, model_outputs: Any, limits: dict[str, float] | None = None, **options: Any) -> Any:
        """Return labels with their scores, best first; other arguments as in the base class."""
        config: Any = self.model.config
        model_outputs["logits"] = tempered(model_outputs["logits"], config)
        options["function_to_apply"] = options.get("function_to_apply") or reading_of(config)
        return above(super().postprocess(model_outputs, **options), limits)


class RadioImageSegmentationPipeline(TiledInference, ImageSegmentationPipeline):
    """Transformers' `image-segmentation` with batches of any sizes, tiles, `scales` and `flip`."""

    stock_options = ("subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold", "timeout")


class RadioDepthEstimationPipeline(TiledInference, DepthEstimationPipeline):
    """Transformers' `depth-estimation` with batches of any sizes, tiles and `flip`."""

    view_options = ("tile_size", "tile_overlap", "flip")
    stock_options = ("parameters", "timeout")


class RadioObjectDetectionPipeline(TiledInference, ObjectDetectionPipeline):
    """Transformers' `object-detection` with batches of any sizes, tiles, `scales` and `flip`.

    Boxes of several views are merged, with `nms_threshold` as in `RadioForObjectDetection.predict`. The default
    `threshold` is each label's own in `config.score_thresholds`, or 0.5 without these.
    """

    view_options = VIEW_OPTIONS

    # pyrefly: ignore[bad-override]
    def postprocess(self, model_outputs: Any, threshold: float | str = "tuned") -> Any:
        """Return the objects whose score exceeds `threshold`, a number or "tuned"."""
        limits = limits_or_default(self.model.config, threshold)
        return above(super().postprocess(model_outputs, threshold=min(limits.values())), limits)


class RadioVideoClassificationPipeline(VideoClassificationPipeline):
    """Transformers' `video-classification` with a classifier of ours: `pipeline("video-classification", model=folder)`.

    Options and results are the same. A video is anything that `RadioVideoProcessor` takes, also frames in memory.
    Scores are those of logits divided by `config.temperature`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Pipeline.__init__(self, *args, **kwargs)  # the base class requires PyAV even if there are no files to read

    # pyrefly: ignore[bad-override]
    def _sanitize_parameters(self, function_to_apply: Reading | None = None, **kwargs: Any) -> Any:
        before, forward, after = super()._sanitize_parameters(function_to_apply=function_to_apply, **kwargs)
        if function_to_apply is None:
            after.pop("function_to_apply", None)  # transformers 5.17 sets a softmax
        return before, forward, after

    # pyrefly: ignore[bad-override]
    def preprocess(self, video: Any, num_frames: int | None = None, frame_sampling_rate: int = 1) -> Any:
        """Return the inputs of one video.

        Args:
            video: Anything that `RadioVideoProcessor` takes.
            num_frames: Largest number of frames to read; `None` takes the processor's, or `NUM_FRAMES`.
            frame_sampling_rate: Must be 1, since the frames are spread over the whole video.

        Raises:
            ValueError: If the rate is not 1.
        """
        if frame_sampling_rate != 1:
            raise ValueError(
                f"`frame_sampling_rate` must be 1, got {frame_sampling_rate}: `num_frames` are spread over the video."
            )
        processor: Any = self.video_processor
        wanted = num_frames or processor.num_frames or NUM_FRAMES
        is_list = isinstance(video, (list, tuple))  # transformers samples frames only from an array
        frames = torch.stack([read_image(frame, True, None) for frame in video]) if is_list else video
        inputs = processor(frames, num_frames=wanted, do_sample_frames=True, return_tensors="pt")
        return inputs.to(self.dtype)

    def _forward(self, model_inputs: Any) -> Any:
        return self.model(**model_inputs, return_dict=True)

    # pyrefly: ignore[bad-override]
    def postprocess(self, model_outputs: Any, top_k: int = 5, function_to_apply: Reading | None = None) -> Any:
        """Return labels with their scores, best first.

        Args:
            model_outputs: Those of one video.
            top_k: Largest number of labels.
            function_to_apply: Function from logits to scores; `None` takes that of the configuration.
        """
        config: Any = self.model.config
        model_outputs["logits"] = tempered(model_outputs["logits"].float(), config)
        return super().postprocess(model_outputs, top_k, function_to_apply or reading_of(config))


class RadioZeroShotImageClassificationPipeline(AnySizeBatches, ZeroShotImageClassificationPipeline):
    """Transformers' `zero-shot-image-classification`, with the padding and the probabilities of the text tower.

    Transformers' own class recognizes SigLIP by the model's type. Options and results are the same:
    `pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)`. With a SigLIP tower a score is
    the probability that the text fits the image; with a CLIP tower, that it is the one text among all that fits.
    """

    model: Any

    # pyrefly: ignore[bad-override]
    def preprocess(self, image: Any, *args: Any, tokenizer_kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        """Tokenize with truncation, and for a SigLIP tower pad to its full length; arguments as in the base class."""
        padding = {
            "padding": "max_length" if self.model.use_sigmoid else True,
            "truncation": True,
            "max_length": self.model.max_text_length,
        }
        tokenizer_kwargs = {**padding, **(tokenizer_kwargs or {})}
        labels = options["candidate_labels"]
        options["candidate_labels"] = self.model.clean_texts(labels)
        inputs = super().preprocess(image, *args, tokenizer_kwargs=tokenizer_kwargs, **options)
        inputs["candidate_labels"] = labels
        return inputs

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return labels with scores in [0, 1], best first."""
        scores = self.model.probabilities(model_outputs["logits"][0]).tolist()
        ranked = sorted(zip(scores, model_outputs["candidate_labels"], strict=True), key=lambda pair: -pair[0])
        return [{"score": score, "label": label} for score, label in ranked]


SEGMENT_OPTIONS = ("source", "window_size", "scra", "scga", "sliding", "denoising", "sam")
"""Options of `segment` of the zero-shot class."""


class _WordMaps(ImageSegmentationPipeline):
    """Base of pipelines on maps of words: `segment` of the zero-shot class, with `candidate_labels`."""

    _load_tokenizer = True
    stock_options: tuple[str, ...] = ("timeout",)
    model: Any
    image_processor: Any
    _embedded: tuple[Any, Tensor] | None = None

    # pyrefly: ignore[bad-override]
    def __call__(self, inputs: Any, candidate_labels: Any = None, **kwargs: Any) -> Any:
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **kwargs)

    # pyrefly: ignore[bad-override]
    def _sanitize_parameters(self, candidate_labels: Any = None, templates: Any = None, **kwargs: Any) -> Any:
        forward = {name: kwargs.pop(name) for name in SEGMENT_OPTIONS if name in kwargs}
        known = ("candidate_labels", "templates", *SEGMENT_OPTIONS, *self.stock_options)
        refuse_unknown(kwargs, known, "and those of every pipeline")
        before = {"timeout": kwargs.pop("timeout")} if "timeout" in kwargs else {}
        if templates is not None:
            forward["templates"] = tuple(templates)
        if candidate_labels is not None:
            labels = candidate_labels.split(",") if isinstance(candidate_labels, str) else candidate_labels
            kwargs["candidate_labels"] = forward["candidate_labels"] = tuple(label.strip() for label in labels)
        return before, forward, kwargs

    # pyrefly: ignore[bad-override]
    def _forward(self, model_inputs: Any, candidate_labels: Any = None, templates: Any = None, **options: Any) -> Any:
        if not candidate_labels:
            raise ValueError(f"`candidate_labels` must be one or more words, got {candidate_labels!r}.")
        wanted = candidate_labels, templates
        if self._embedded is None or self._embedded[0] != wanted:
            chosen = {} if templates is None else {"templates": templates}
            self._embedded = wanted, self.model.embed_classes(self.tokenizer, candidate_labels, **chosen)
        options = {"source": self.model.usual_dense_source, **options}
        outputs = self.model.segment(model_inputs["pixel_values"], self._embedded[1], **options)
        outputs["target_size"] = model_inputs["target_size"]
        return outputs


class RadioWordSegmentationPipeline(AnySizeBatches, _WordMaps):
    """Transformers' `image-segmentation` with words, for folders with texts: a mask for each word that is seen.

    `pipeline("image-segmentation", model=folder, trust_remote_code=True)(image, candidate_labels=["sky", "lake"])`.
    Each pixel goes to the nearest word, so name what is around too. Options, of the pipeline or of a call:

    - `candidate_labels`: words, in a list or with commas between them.
    - `templates`: prompts with the placeholder `{}` (see `embed_classes`).
    - `threshold`: pixels whose word is less probable than this are in no mask; by default 0.
    - those of `segment`: `source` (by default the model's `usual_dense_source`), `window_size`, and RADSeg's steps
      `scra`, `scga`, `sliding`, `denoising` and `sam`.

    Results have `label`, `mask` and `score`, the mean probability of the word, a softmax over all, in its mask.
    """

    stock_options = ("threshold", "timeout")

    # pyrefly: ignore[bad-override]
    def postprocess(self, model_outputs: Any, candidate_labels: Any, threshold: float = 0.0) -> list[dict[str, Any]]:
        """Return score, label and mask of each word that is seen, in the order of the words."""
        (found,) = self.image_processor.post_process_semantic_segmentation(
            model_outputs, target_sizes=model_outputs["target_size"], return_segmentation_scores=True
        )
        likely, winners = found["segmentation_scores"].float().softmax(dim=0).max(dim=0)
        results = []
        for index, label in enumerate(candidate_labels):
            mask = (winners == index) & (likely >= threshold)
            if mask.any():
                picture = to_pil_image(255 * mask.byte().cpu())
                results.append({"score": likely[mask].mean().item(), "label": label, "mask": picture})
        return results


REGION_PLACES = 256
"""Our choice: fewest places along the longer side of the map in which regions are found, enlarged from patches."""


class RadioZeroShotObjectDetectionPipeline(AnySizeBatches, _WordMaps):
    """`zero-shot-object-detection` from maps of words: the boxes of connected regions, not of objects.

    Two objects of one word that touch are one box, and an object in two parts is two boxes. Each place goes to the
    nearest word, so name what is around too, such as "grass", and leave its boxes aside. Options are those of
    `RadioWordSegmentationPipeline`, but:

    - `threshold`: least score; by default 0.1, as of transformers' own.
    - `top_k`: largest number of boxes; by default all.
    - `return_masks`: add the region itself as `mask`, an image of the size of the photograph; by default False.

    An image may also be a dictionary with "image" and "candidate_labels". Results have `label`, `score`, the mean
    probability of the word in the region, and `box` with `xmin`, `ymin`, `xmax`, `ymax` in pixels of the image. Regions
    smaller than a patch are left out.
    """

    stock_options = ("threshold", "top_k", "return_masks", "timeout")

    # pyrefly: ignore[bad-override]
    def __call__(self, image: Any, candidate_labels: Any = None, **kwargs: Any) -> Any:
        if isinstance(image, dict):
            return self(image["image"], image["candidate_labels"], **kwargs)
        if isinstance(image, (list, tuple)) and image and isinstance(image[0], dict):
            return [self(each, **kwargs) for each in image]
        return super().__call__(image, candidate_labels, **kwargs)

    # pyrefly: ignore[bad-override]
    def postprocess(
        self,
        model_outputs: Any,
        candidate_labels: Any,
        threshold: float = 0.1,
        top_k: int | None = None,
        return_masks: bool = False,
    ) -> list[dict[str, Any]]:
        """Return boxes with their labels and scores, the most certain first."""
        ((height, width),) = model_outputs["target_size"]
        logits = model_outputs["logits"].float()
        factor = max(1, math.ceil(REGION_PLACES / max(logits.shape[2:])))
        rows, cols = (factor * side for side in logits.shape[2:])
        enlarged = F.interpolate(logits, (rows, cols), mode="bilinear", align_corners=False)
        regions = find_regions(enlarged[0].softmax(dim=0), least_area=factor**2)
        boxes = regions.boxes * torch.tensor([width / cols, height / rows], device=logits.device).repeat(2)
        scores, labels, boxes = regions.scores.tolist(), regions.labels.tolist(), boxes.tolist()
        found = []
        for number in sorted(range(len(scores)), key=lambda number: -scores[number])[:top_k]:
            if scores[number] < threshold:
                break
            box = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(round, boxes[number]), strict=True))
            found.append({"score": scores[number], "label": candidate_labels[labels[number]], "box": box})
            if return_masks:
                mask = to_pil_image(255 * (regions.numbers == number).byte().cpu())
                found[-1]["mask"] = mask.resize((width, height), Image.Resampling.NEAREST)
        return found


class RadioInstanceSegmentationPipeline(AnySizeBatches, ImageSegmentationPipeline):
    """Transformers' `image-segmentation` for an instance segmenter: a mask for each object; masks may overlap.

    `pipeline("image-segmentation", model=folder, trust_remote_code=True)` takes this class for a model from a folder;
    for a model in memory pass it as `pipeline_class`. Options and results are those of the subtask "instance", without
    `overlap_mask_area_threshold`, which belongs to maps without overlaps. Each image has one view: `tile_size` and the
    like are for boxes.
    """

    image_processor: RadioImageProcessor  # pyrefly: ignore[bad-override-mutable-attribute]

    def check_model_type(self, supported_models: Any) -> None:
        """Raise a `ValueError` unless the model is an instance segmenter, by name: folders have their own classes."""
        name = type(self.model).__name__
        if name != INSTANCE_SEGMENTER:
            raise ValueError(f"`model` must be a {INSTANCE_SEGMENTER} for {type(self).__name__}, got a {name}.")

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        single_view = "their masks come from one look at an image; several are for boxes, in `object-detection`"
        reasons = {"overlap_mask_area_threshold": "their masks may overlap", **dict.fromkeys(VIEW_OPTIONS, single_view)}
        refused = next((name for name in reasons if name in kwargs), None)
        if refused is not None:
            raise ValueError(f"`{refused}` must be left out for a model of instances: {reasons[refused]}.")
        refuse_unknown(kwargs, ("subtask", "threshold", "mask_threshold", "timeout"), "and those of every pipeline")
        return super()._sanitize_parameters(**kwargs)

    # pyrefly: ignore[bad-override]
    def postprocess(
        self,
        model_outputs: Any,
        subtask: str | None = None,
        threshold: float | str = "tuned",
        mask_threshold: float = 0.5,
    ) -> list[dict[str, Any]]:
        """Return score, label and mask of each object, the most certain first.

        Args:
            model_outputs: Those of one image, with its `target_size`.
            subtask: "instance" or `None`.
            threshold: Least score, in [0, 1]; "tuned" takes each label's own in `config.score_thresholds`, or 0.5
                without these.
            mask_threshold: A pixel belongs to the object if its probability exceeds this.

        Raises:
            ValueError: If the subtask is another one.
        """
        if subtask not in ("instance", None):
            raise ValueError(f"`subtask` must be 'instance' or None for a model of instances, got {subtask!r}.")
        limits = limits_or_default(self.model.config, threshold)
        (found,) = self.image_processor.post_process_instances(
            model_outputs,
            model_outputs["target_size"],
            min(limits.values()),
            torch.tensor(mask_threshold).logit().item(),
        )
        names: Any = self.model.config.id2label
        objects = [
            {"score": score, "label": names[label], "mask": to_pil_image(255 * mask.byte())}
            for score, label, mask in zip(
                found["scores"].tolist(), found["labels"].tolist(), found["masks"], strict=True
            )
        ]
        return above(objects, limits)
