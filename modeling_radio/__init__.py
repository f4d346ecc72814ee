"""RADIO vision backbones for Hugging Face transformers.

Importing this package registers its classes with the Auto classes: `AutoModel`, `AutoBackbone` and all others then
build and open ours, also inside composite models, in place of transformers' native `RadioModel`.

`modeling_radio.training`, `.conversion`, `.model_cards` and `.core` are inside this folder where the package is
installed, and beside it in a clone.
"""

from .version_radio import MINIMUM as MINIMUM  # first: later imports fail with an older transformers


# isort: split
import importlib
from pathlib import Path
from typing import Any

import transformers

from . import nvidia
from .adaptors_radio import RadioAdaptorOutput
from .backbone_radio import RadioBackbone
from .configuration_radio import RadioAdaptorConfig, RadioConfig
from .detection_radio import (
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForUniversalSegmentation,
    RadioUniversalSegmentationOutput,
)
from .heads_radio import RadioForDepthEstimation, RadioForImageClassification, RadioForSemanticSegmentation
from .hub_radio import register_model
from .image_processing_radio import RadioImageProcessor
from .modeling_radio import RadioIntermediateOutput, RadioModel, RadioModelOutput, RadioPreTrainedModel
from .outputs_radio import RadioPair
from .processing_radio import RadioProcessor
from .sam3_radio import attach_to_sam3, save_attached
from .tasks_radio import AUTO_MAP, TASKS
from .video_processing_radio import RadioVideoProcessor
from .zero_shot_radio import RadioForZeroShotImageClassification, RadioZeroShotOutput


__version__ = "0.1.0"

__all__ = [
    "RadioAdaptorConfig",
    "RadioAdaptorOutput",
    "RadioBackbone",
    "RadioConfig",
    "RadioForDepthEstimation",
    "RadioForImageClassification",
    "RadioForInstanceSegmentation",
    "RadioForObjectDetection",
    "RadioForSemanticSegmentation",
    "RadioForUniversalSegmentation",
    "RadioForZeroShotImageClassification",
    "RadioImageProcessor",
    "RadioIntermediateOutput",
    "RadioModel",
    "RadioModelOutput",
    "RadioPair",
    "RadioPreTrainedModel",
    "RadioProcessor",
    "RadioUniversalSegmentationOutput",
    "RadioVideoProcessor",
    "RadioZeroShotOutput",
    "attach_to_sam3",
    "save_attached",
]


_CLONE = Path(__file__).parents[1]
if (_CLONE / "pyproject.toml").is_file() and str(_CLONE) not in __path__:
    __path__.append(str(_CLONE))


def class_of(reference: str) -> Any:
    """Return a class that a table of `tasks_radio.py` names, `module.Class`."""
    module, _, name = reference.partition(".")
    return vars(importlib.import_module(f".{module}", __name__))[name]


TASK_MODELS = {task.class_name: class_of(task.model) for task in TASKS.values()}
"""Classes of all tasks by name."""


def _register() -> None:
    transformers.AutoConfig.register(RadioConfig.model_type, RadioConfig, exist_ok=True)
    transformers.AutoImageProcessor.register(
        RadioConfig, image_processor_classes={"torchvision": RadioImageProcessor}, exist_ok=True
    )
    transformers.AutoVideoProcessor.register(RadioConfig, RadioVideoProcessor, exist_ok=True)
    transformers.AutoProcessor.register(RadioConfig, RadioProcessor, exist_ok=True)
    for auto_class in ("AutoModel", "AutoBackbone"):
        register_model(class_of(AUTO_MAP[auto_class]), auto_class, RadioConfig)
    for auto_class in {auto_class for task in TASKS.values() for auto_class in task.auto_classes}:
        register_model(class_of(AUTO_MAP[auto_class]), auto_class, RadioConfig)
    for task in TASKS.values():
        # A folder names its architecture, by which these Auto classes then choose.
        for auto_class in task.own_auto_map:
            register_model(class_of(task.model), auto_class, RadioConfig)


_register()
nvidia.register()
