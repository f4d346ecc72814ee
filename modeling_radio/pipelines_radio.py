"""Pipelines where transformers' own do not fit; `config.json` names them, so that `pipeline` finds them."""

from typing import Any

import torch
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

from .auto_map_radio import INSTANCE_SEGMENTER
from .class_scores_radio import Reading, reading_of, tempered
from .image_processing_radio import RadioImageProcessor
from .image_reading_radio import read_image
from .pipeline_parts_radio import VIEW_OPTIONS, AnySizeBatches, SeveralViews, TunedThresholds, above, limits_of
from .zero_shot_radio import RadioForZeroShotImageClassification


NUM_FRAMES = 8
"""Frames of a video that a pipeline looks at by default (our choice; CLIP4Clip takes 12 of longer clips)."""


class RadioImageFeatureExtractionPipeline(AnySizeBatches, ImageFeatureExtractionPipeline):
    """Transformers' `image-feature-extraction` with batches of any sizes."""


class RadioImageClassificationPipeline(SeveralViews, ImageClassificationPipeline):
    """Transformers' `image-classification` with batches of any sizes, `scales` and `flip`.

    A score is that of logits divided by `config.temperature`. `threshold` leaves out labels of lower scores: a number,
    or "tuned" for that of each label in `config.score_thresholds`.
    """

    view_options = ("scales", "flip")

    # pyrefly: ignore[bad-override]
    def _sanitize_parameters(self, threshold: float | str | None = None, **kwargs: Any) -> Any:
        before, forward, after = super()._sanitize_parameters(**kwargs)
        if threshold is not None:  # of all labels, where nobody asks for the best few
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


class RadioImageSegmentationPipeline(SeveralViews, ImageSegmentationPipeline):
    """Transformers' `image-segmentation` with batches of any sizes, tiles, `scales` and `flip`."""


class RadioDepthEstimationPipeline(SeveralViews, DepthEstimationPipeline):
    """Transformers' `depth-estimation` with batches of any sizes, tiles and `flip`."""

    view_options = ("tile_size", "tile_overlap", "flip")


class RadioObjectDetectionPipeline(TunedThresholds, SeveralViews, ObjectDetectionPipeline):
    """Transformers' `object-detection` with batches of any sizes, tiles, `scales` and `flip`.

    Boxes of several looks are merged: `nms_threshold` as in `RadioForObjectDetection.predict`. Without a `threshold`
    each label's own in `config.score_thresholds` counts, and 0.5 where there are none.
    """

    view_options = VIEW_OPTIONS

    # pyrefly: ignore[bad-override]
    def postprocess(self, model_outputs: Any, threshold: float | str = "tuned") -> Any:
        """Return the objects whose score exceeds `threshold`, a number or "tuned"."""
        limits = self._limits(threshold)
        return above(super().postprocess(model_outputs, threshold=min(limits.values())), limits)


class RadioVideoClassificationPipeline(VideoClassificationPipeline):
    """Transformers' `video-classification` with a classifier of ours: `pipeline("video-classification", model=folder)`.

    Options and results are the same. A video is whatever `RadioVideoProcessor` takes, also frames in memory. A score is
    that of logits divided by `config.temperature`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Pipeline.__init__(self, *args, **kwargs)  # the base class asks for PyAV before it knows whether to read files

    # pyrefly: ignore[bad-override]
    def _sanitize_parameters(self, function_to_apply: Reading | None = None, **kwargs: Any) -> Any:
        asked: Any = {} if function_to_apply is None else {"function_to_apply": function_to_apply}
        before, forward, after = super()._sanitize_parameters(**kwargs, **asked)
        if not asked:
            after.pop("function_to_apply", None)  # up to 5.17 a softmax where nobody asks for anything
        return before, forward, after

    # pyrefly: ignore[bad-override]
    def preprocess(self, video: Any, num_frames: int | None = None, frame_sampling_rate: int = 1) -> Any:
        """Return the inputs of one video.

        Args:
            video: Of any kind that `RadioVideoProcessor` takes.
            num_frames: Largest number of frames to look at; `None` takes the processor's, or `NUM_FRAMES`.
            frame_sampling_rate: Not read, frames are spread over the whole video; 1 is accepted.

        Raises:
            ValueError: If another rate is wanted.
        """
        if frame_sampling_rate != 1:
            raise ValueError(
                f"`frame_sampling_rate` must be 1, got {frame_sampling_rate}: `num_frames` are spread over the video."
            )
        processor: Any = self.video_processor
        wanted = num_frames or processor.num_frames or NUM_FRAMES
        is_list = isinstance(video, (list, tuple))  # of frames, which transformers samples as an array only
        frames = torch.stack([read_image(frame, True, None) for frame in video]) if is_list else video
        inputs = processor(frames, num_frames=wanted, do_sample_frames=True, return_tensors="pt")
        return inputs.to(self.dtype)

    def _forward(self, model_inputs: Any) -> Any:
        return self.model(**model_inputs, return_dict=True)

    # pyrefly: ignore[bad-override]
    def postprocess(self, model_outputs: Any, top_k: int = 5, function_to_apply: Reading | None = None) -> Any:
        """Return labels with their scores, best first.

        Args:
            model_outputs: Of one video.
            top_k: Largest number of labels.
            function_to_apply: What makes scores of the logits; `None` takes that of the configuration.
        """
        config: Any = self.model.config
        model_outputs["logits"] = tempered(model_outputs["logits"].float(), config)
        return super().postprocess(model_outputs, top_k, function_to_apply or reading_of(config))


class RadioZeroShotImageClassificationPipeline(AnySizeBatches, ZeroShotImageClassificationPipeline):
    """Transformers' `zero-shot-image-classification`, with the padding and the probabilities of the text tower.

    Transformers' own class tells SigLIP by the model's type. Options and results are the same:
    `pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)`. A score is the probability that
    the text fits the image with a SigLIP tower, and that it is the one of all texts that fits with a CLIP tower.
    """

    model: RadioForZeroShotImageClassification  # pyrefly: ignore[bad-override-mutable-attribute]

    # pyrefly: ignore[bad-override]
    def preprocess(
        self,
        image: Any,
        candidate_labels: list[str] | None = None,
        hypothesis_template: str = "This is a photo of {}.",
        timeout: float | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Tokenize with truncation, and for a SigLIP tower pad to its full length; arguments as in the base class."""
        padding = {
            "padding": "max_length" if self.model.use_sigmoid else True,
            "truncation": True,
            "max_length": self.model.max_text_length,
        }
        return super().preprocess(
            image, candidate_labels, hypothesis_template, timeout, {**padding, **(tokenizer_kwargs or {})}
        )

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return labels with scores in [0, 1], best first."""
        scores = self.model.probabilities(model_outputs["logits"][0]).tolist()
        ranked = sorted(zip(scores, model_outputs["candidate_labels"], strict=True), key=lambda pair: -pair[0])
        return [{"score": score, "label": label} for score, label in ranked]


class RadioInstanceSegmentationPipeline(TunedThresholds, AnySizeBatches, ImageSegmentationPipeline):
    """Transformers' `image-segmentation` for a model of instances: a mask for each object; masks may overlap.

    `pipeline("image-segmentation", model=folder, trust_remote_code=True)`: a model opened from a folder gets this
    class; for one in memory give it as `pipeline_class`. Options and results are those of the subtask "instance",
    without `overlap_mask_area_threshold`, which divides a map without overlaps among the objects. There is one look at
    an image: `tile_size` and the like are for boxes.
    """

    image_processor: RadioImageProcessor  # pyrefly: ignore[bad-override-mutable-attribute]

    def check_model_type(self, supported_models: Any) -> None:
        """Raise a `ValueError` unless it is a model of instances, told by name: a folder has its own class."""
        name = type(self.model).__name__
        if name != INSTANCE_SEGMENTER:
            raise ValueError(f"`model` must be a {INSTANCE_SEGMENTER} for {type(self).__name__}, got a {name}.")

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        one_look = "their masks come from one look at an image; several are for boxes, in `object-detection`"
        reasons = {"overlap_mask_area_threshold": "their masks may overlap", **dict.fromkeys(VIEW_OPTIONS, one_look)}
        refused = next((name for name in reasons if name in kwargs), None)
        if refused is not None:
            raise ValueError(f"`{refused}` must be left out for a model of instances: {reasons[refused]}.")
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
            model_outputs: Of one image, with its `target_size`.
            subtask: "instance" or `None`.
            threshold: Least score, in [0, 1]; "tuned" takes each label's own in `config.score_thresholds`, and 0.5
                where there are none.
            mask_threshold: A pixel belongs to the object where its probability exceeds this.

        Raises:
            ValueError: If another subtask is wanted.
        """
        if subtask not in ("instance", None):
            raise ValueError(f"`subtask` must be 'instance' or None for a model of instances, got {subtask!r}.")
        limits = self._limits(threshold)
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
