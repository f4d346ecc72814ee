"""What a saved folder says about its classes: which the Auto classes open, and where pipelines of ours are needed."""

import copy
import shutil
from pathlib import Path
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
}
"""Written in full into every saved `config.json`: `save_pretrained` alone writes only the saved class."""

INSTANCE_SEGMENTER = "RadioForInstanceSegmentation"

INSTANCE_AUTO_MAP = {
    **AUTO_MAP,
    "AutoModelForObjectDetection": f"auto_radio.{INSTANCE_SEGMENTER}",
    "AutoModelForImageSegmentation": f"auto_radio.{INSTANCE_SEGMENTER}",
}
"""Written into that model's folders: a detector or a semantic segmenter would start there with a new head."""

INSTANCE_PIPELINES = {
    "image-segmentation": {
        "impl": "pipelines_radio.RadioInstanceSegmentationPipeline",
        "pt": ["AutoModelForInstanceSegmentation"],
        "type": "image",
    }
}
"""Written there too: transformers' own pipeline tells instances by the processor, which is the same for every task."""

TEXT_PIPELINES = {
    "zero-shot-image-classification": {
        "impl": "pipelines_radio.RadioZeroShotImageClassificationPipeline",
        "pt": ["AutoModelForZeroShotImageClassification"],
        "type": "multimodal",
    }
}
"""Written where there is a text tower: transformers' own pipeline tells SigLIP's towers by the model's name."""


FEATURE_PIPELINES = {
    "image-feature-extraction": {
        "impl": "pipelines_radio.RadioImageFeatureExtractionPipeline",
        "pt": ["AutoModel"],
        "type": "image",
    }
}
"""Written where the model answers in pairs: transformers' own pipeline reads items by name."""


def auto_map_entries(architectures: list[str] | None, *, has_text_tower: bool, has_names: bool) -> dict[str, Any]:
    """Return the entries of `config.json` by which transformers finds our classes: `auto_map`, `custom_pipelines`.

    Args:
        architectures: Class of the saved model, as transformers writes it.
        has_text_tower: Whether the folder holds one.
        has_names: Whether its model answers by name, and not in pairs.
    """
    is_instances = architectures == [INSTANCE_SEGMENTER]
    pipelines: dict[str, Any] = {} if has_names else {**FEATURE_PIPELINES}
    if is_instances:
        pipelines |= INSTANCE_PIPELINES
    elif has_text_tower:
        pipelines |= TEXT_PIPELINES
    entries: dict[str, Any] = {"auto_map": INSTANCE_AUTO_MAP if is_instances else AUTO_MAP}
    return copy.deepcopy(entries | ({"custom_pipelines": pipelines} if pipelines else {}))


def copy_source_files(folder: str | Path) -> None:
    """Copy into a folder the source files that `trust_remote_code` runs."""
    for source in Path(__file__).parent.glob("*_radio.py"):
        shutil.copyfile(source, Path(folder) / source.name)
