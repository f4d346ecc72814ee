"""What a saved folder says of its classes, and how their source files come along."""

import copy
import importlib
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any


AUTO_MAP = {
    "AutoConfig": "auto_radio.RadioConfig",
    "AutoModel": "auto_radio.RadioModel",
    "AutoBackbone": "auto_radio.RadioBackbone",
    "AutoModelForImageClassification": "auto_radio.RadioForImageClassification",
    "AutoModelForZeroShotImageClassification": "auto_radio.RadioForZeroShotImageClassification",
    "AutoModelForSemanticSegmentation": "auto_radio.RadioForSemanticSegmentation",
    "AutoModelForImageSegmentation": "auto_radio.RadioForSemanticSegmentation",
    "AutoModelForDepthEstimation": "auto_radio.RadioForDepthEstimation",
    "AutoModelForObjectDetection": "auto_radio.RadioForObjectDetection",
    "AutoModelForInstanceSegmentation": "auto_radio.RadioForInstanceSegmentation",
    "AutoModelForUniversalSegmentation": "auto_radio.RadioForUniversalSegmentation",
    "AutoModelForVideoClassification": "auto_radio.RadioForImageClassification",
    "AutoVideoProcessor": "auto_radio.RadioVideoProcessor",
}
"""Written in full into every saved `config.json`: `save_pretrained` alone writes only the saved class."""

INSTANCE_SEGMENTER = "RadioForInstanceSegmentation"
INSTANCE_SEGMENTERS = (INSTANCE_SEGMENTER, "RadioForUniversalSegmentation")
"""One model under two interfaces."""

INSTANCE_AUTO_MAP = {
    **AUTO_MAP,
    "AutoModelForObjectDetection": f"auto_radio.{INSTANCE_SEGMENTER}",
    "AutoModelForImageSegmentation": f"auto_radio.{INSTANCE_SEGMENTER}",
}
"""Written into their folders: a detector or a semantic segmenter would start there with a new head."""


def _pipeline(name: str, auto_class: str, kind: str = "image") -> dict[str, Any]:
    return {"impl": f"pipelines_radio.{name}", "pt": [auto_class], "type": kind}


PIPELINES = {
    "image-feature-extraction": _pipeline("RadioImageFeatureExtractionPipeline", "AutoModel"),
    "image-classification": _pipeline("RadioImageClassificationPipeline", "AutoModelForImageClassification"),
    "image-segmentation": _pipeline("RadioImageSegmentationPipeline", "AutoModelForImageSegmentation"),
    "depth-estimation": _pipeline("RadioDepthEstimationPipeline", "AutoModelForDepthEstimation"),
    "object-detection": _pipeline("RadioObjectDetectionPipeline", "AutoModelForObjectDetection"),
    "video-classification": _pipeline("RadioVideoClassificationPipeline", "AutoModelForVideoClassification", "video"),
}
"""Written into every folder too: transformers' own join images of one size only with `batch_size=`."""

INSTANCE_PIPELINES = {
    **PIPELINES,
    "image-segmentation": _pipeline("RadioInstanceSegmentationPipeline", "AutoModelForInstanceSegmentation"),
}
"""Written into instance segmenters' folders: masks of instances may overlap, and come with their own options."""

TEXT_PIPELINES = {
    **PIPELINES,
    "zero-shot-image-classification": _pipeline(
        "RadioZeroShotImageClassificationPipeline", "AutoModelForZeroShotImageClassification", "multimodal"
    ),
}
"""Written where there is a text tower: transformers' own pipeline tells SigLIP's towers by the model's name."""


FEATURE_EXTRACTION = "image-feature-extraction"
TASK_OF_CLASS = {
    "RadioForImageClassification": "image-classification",
    "RadioForZeroShotImageClassification": "zero-shot-image-classification",
    "RadioForSemanticSegmentation": "image-segmentation",
    "RadioForInstanceSegmentation": "image-segmentation",
    "RadioForUniversalSegmentation": "image-segmentation",
    "RadioForDepthEstimation": "depth-estimation",
    "RadioForObjectDetection": "object-detection",
}
"""The pipeline of a folder, by the class that wrote it; all others extract features."""


def task_of(architectures: list[str] | None) -> str:
    """Return the pipeline that a folder is for, by its class as `config.json` names it."""
    (name,) = (architectures or [""])[:1]
    return TASK_OF_CLASS.get(name, FEATURE_EXTRACTION)


def own_pipeline(values: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a parsed `config.json` for the pipeline that the folder is for.

    transformers infers a task only where there is no choice: `pipeline(model="ORG/NAME")`.
    """
    task = task_of(values.get("architectures"))
    return {name: entry for name, entry in values["custom_pipelines"].items() if name == task}


def auto_map_entries(architectures: list[str] | None, *, has_text_tower: bool) -> dict[str, Any]:
    """Return the entries of `config.json` by which transformers finds our classes: `auto_map`, `custom_pipelines`.

    Args:
        architectures: Class of the saved model, as transformers writes it.
        has_text_tower: Whether the folder holds one.
    """
    if architectures and architectures[0] in INSTANCE_SEGMENTERS:
        entries = {"auto_map": INSTANCE_AUTO_MAP, "custom_pipelines": INSTANCE_PIPELINES}
    elif has_text_tower:
        entries = {"auto_map": AUTO_MAP, "custom_pipelines": TEXT_PIPELINES}
    else:
        entries = {"auto_map": AUTO_MAP, "custom_pipelines": PIPELINES}
    return copy.deepcopy(entries)


def copy_source_files(folder: str | Path) -> None:
    """Copy into a folder the source files that `trust_remote_code` runs."""
    for source in Path(__file__).parent.glob("*_radio.py"):
        shutil.copyfile(source, Path(folder) / source.name)


def import_sibling(name: str, config: Any = None) -> ModuleType:
    """Return another source file of this package, which only some models need."""
    return importlib.import_module(f"{__package__}.{name}")
