"""Tasks of models with a head: one table, from which folders, cards, exports, the app and tuning know each head.

It imports nothing heavy, so that `radio finetune --help` need not wait for torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


FEATURE_EXTRACTION = "image-feature-extraction"


class PipelineEntry(NamedTuple):
    """A pipeline of transformers for our models.

    Attributes:
        impl: Class of the pipeline, `module.Class`.
        auto_class: Auto class that opens its model.
        kind: Kind of its inputs, as transformers names it.
    """

    impl: str
    auto_class: str
    kind: str = "image"


@dataclass(frozen=True)
class HeadTask:
    """One task.

    Attributes:
        model: Class of the model, `module.Class`.
        auto_classes: Auto classes that open it in every folder.
        own_auto_map: Auto classes that open another class in folders of this task than in others.
        pipelines: Pipelines of every folder, by the name of a task in transformers.
        own_pipelines: Pipelines of folders of this task, in place of others or beside them.
        fields: Fields of `RadioConfig` that only this head and some others read.
        post_processing: Method of `RadioImageProcessor` that reads the model's outputs; `None` where they are scores.
        has_classes: Whether the configuration names the classes of the outputs.
        tuning: Class of the tuning task, `module:Class` in `tuning/tasks`, which holds the metrics and the columns of
            the labels; `None` where there is none.
    """

    model: str
    auto_classes: tuple[str, ...]
    own_auto_map: dict[str, str] = field(default_factory=dict)
    pipelines: dict[str, PipelineEntry] = field(default_factory=dict)
    own_pipelines: dict[str, PipelineEntry] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    post_processing: str | None = None
    has_classes: bool = True
    tuning: str | None = None

    @property
    def class_name(self) -> str:
        """Name of the class, as `architectures` of a folder has it."""
        return self.model.rpartition(".")[2]

    @property
    def pipeline(self) -> str:
        """Pipeline that a folder of this task is for."""
        return next(iter(self.own_pipelines or self.pipelines), FEATURE_EXTRACTION)


INSTANCE_SEGMENTER = "RadioForInstanceSegmentation"
_INSTANCES = f"detection_radio.{INSTANCE_SEGMENTER}"
_CLASSIFIER, _VIDEO = "AutoModelForImageClassification", "AutoModelForVideoClassification"
_SEGMENTER, _DETECTOR = "AutoModelForImageSegmentation", "AutoModelForObjectDetection"
_DEPTH, _TEXTS = "AutoModelForDepthEstimation", "AutoModelForZeroShotImageClassification"
_DPT = ("dpt_indices", "dpt_hidden_size")
_DETECTION = (
    *("detection_indices", "detection_hidden_size", "detection_num_layers", "detection_num_queries"),
    *("detection_num_groups", "detection_window_size", "score_thresholds"),
)
# In all other folders these Auto classes open another class, which would have a new head in one of instances.
_AUTO_MAP_OF_INSTANCES = {_DETECTOR: _INSTANCES, _SEGMENTER: _INSTANCES}
# Masks of instances may overlap, and come with their own options.
_PIPELINES_OF_INSTANCES = {
    "image-segmentation": PipelineEntry(
        "pipelines_radio.RadioInstanceSegmentationPipeline", "AutoModelForInstanceSegmentation"
    )
}

TASKS = {
    "image-classification": HeadTask(
        "heads_radio.RadioForImageClassification",
        (_CLASSIFIER, _VIDEO),
        pipelines={
            "image-classification": PipelineEntry("pipelines_radio.RadioImageClassificationPipeline", _CLASSIFIER),
            "video-classification": PipelineEntry("pipelines_radio.RadioVideoClassificationPipeline", _VIDEO, "video"),
        },
        fields=("classifier_pooling", "class_weights", "temperature", "score_thresholds"),
        tuning="classification:ClassificationTask",
    ),
    "semantic-segmentation": HeadTask(
        "heads_radio.RadioForSemanticSegmentation",
        ("AutoModelForSemanticSegmentation", _SEGMENTER),
        pipelines={"image-segmentation": PipelineEntry("pipelines_radio.RadioImageSegmentationPipeline", _SEGMENTER)},
        fields=("segmentation_head", "class_weights", "semantic_loss_ignore_index", *_DPT),
        post_processing="post_process_semantic_segmentation",
        tuning="dense:SegmentationTask",
    ),
    "object-detection": HeadTask(
        "detection_radio.RadioForObjectDetection",
        (_DETECTOR,),
        pipelines={"object-detection": PipelineEntry("pipelines_radio.RadioObjectDetectionPipeline", _DETECTOR)},
        fields=_DETECTION,
        post_processing="post_process_object_detection",
        tuning="detection:DetectionTask",
    ),
    "instance-segmentation": HeadTask(
        _INSTANCES,
        ("AutoModelForInstanceSegmentation",),
        own_auto_map=_AUTO_MAP_OF_INSTANCES,
        own_pipelines=_PIPELINES_OF_INSTANCES,
        fields=_DETECTION,
        post_processing="post_process_instance_segmentation",
        tuning="detection:InstanceSegmentationTask",
    ),
    "universal-segmentation": HeadTask(  # the same model under another interface
        "detection_radio.RadioForUniversalSegmentation",
        ("AutoModelForUniversalSegmentation",),
        own_auto_map=_AUTO_MAP_OF_INSTANCES,
        own_pipelines=_PIPELINES_OF_INSTANCES,
        fields=_DETECTION,
        post_processing="post_process_instance_segmentation",
    ),
    "depth-estimation": HeadTask(
        "heads_radio.RadioForDepthEstimation",
        (_DEPTH,),
        pipelines={"depth-estimation": PipelineEntry("pipelines_radio.RadioDepthEstimationPipeline", _DEPTH)},
        fields=_DPT,
        post_processing="post_process_depth_estimation",
        has_classes=False,
        tuning="dense:DepthTask",
    ),
    "zero-shot-image-classification": HeadTask(
        "zero_shot_radio.RadioForZeroShotImageClassification",
        (_TEXTS,),
        # transformers' own pipeline recognizes SigLIP's towers by the model's name.
        own_pipelines={
            "zero-shot-image-classification": PipelineEntry(
                "pipelines_radio.RadioZeroShotImageClassificationPipeline", _TEXTS, "multimodal"
            ),
            "image-segmentation": PipelineEntry("pipelines_radio.RadioWordSegmentationPipeline", _TEXTS, "multimodal"),
            "zero-shot-object-detection": PipelineEntry(
                "pipelines_radio.RadioZeroShotObjectDetectionPipeline", _TEXTS, "multimodal"
            ),
        },
        has_classes=False,
        tuning="classification:ZeroShotTask",
    ),
}
"""By the name for `radio finetune --task`."""

AUTO_MAP = {
    "AutoConfig": "configuration_radio.RadioConfig",
    "AutoModel": "modeling_radio.RadioModel",
    "AutoBackbone": "backbone_radio.RadioBackbone",
    "AutoVideoProcessor": "video_processing_radio.RadioVideoProcessor",
    "AutoProcessor": "processing_radio.RadioProcessor",
    **{auto_class: task.model for task in TASKS.values() for auto_class in task.auto_classes},
}
"""Written in full into every saved `config.json`: `save_pretrained` alone writes only the saved class."""

PIPELINES = {
    FEATURE_EXTRACTION: PipelineEntry("pipelines_radio.RadioImageFeatureExtractionPipeline", "AutoModel"),
    **{name: entry for task in TASKS.values() for name, entry in task.pipelines.items()},
}
"""Written into every folder too: transformers' own join images of one size only with `batch_size=`."""


def task_of(architectures: Sequence[str] | None, auto_map: Mapping[str, object] | None = None) -> HeadTask | None:
    """Return the task of a folder; `None` if its model has no head.

    Args:
        architectures: Class that wrote the folder, as `config.json` names it.
        auto_map: The folder's `auto_map`. A class that is not ours has the task of the Auto class that opens it.
    """
    (name,) = (architectures or [None])[:1]
    opened_by = [auto_class for auto_class, value in (auto_map or {}).items() if str(value).rpartition(".")[2] == name]
    by_class = {task.class_name: task for task in TASKS.values()}
    by_auto_class = {auto_class: task for task in TASKS.values() for auto_class in task.auto_classes}
    return by_class.get(str(name)) or next(filter(None, map(by_auto_class.get, opened_by)), None)


def pipeline_of(architectures: Sequence[str] | None, auto_map: Mapping[str, object] | None = None) -> str:
    """Return the pipeline that a folder is for; arguments are those of `task_of`."""
    task = task_of(architectures, auto_map)
    return FEATURE_EXTRACTION if task is None else task.pipeline


def own_pipeline(values: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a parsed `config.json` for the pipeline that the folder is for.

    transformers infers a task only where there is no choice: `pipeline(model="ORG/NAME")`.
    """
    own = pipeline_of(values.get("architectures"), values.get("auto_map"))
    return {name: entry for name, entry in values["custom_pipelines"].items() if name == own}
