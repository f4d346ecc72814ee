"""RADIO vision backbones for Hugging Face transformers.

Importing this package registers its classes with the Auto classes: `AutoModel`, `AutoBackbone` and all others then
build and open ours, also inside composite models, in place of transformers' native `RadioModel`. It also makes
`attn_implementation="cpu_blocks"` known (`cpu.py`).

`modeling_radio.training`, `.conversion`, `.model_cards` and `.core` are inside this folder where the package is
installed, and beside it in a clone.
"""

from pathlib import Path

import transformers

from . import nvidia
from .adaptors_radio import RadioAdaptorOutput
from .backbone_radio import RadioBackbone
from .configuration_radio import RadioAdaptorConfig, RadioConfig
from .cpu import register_cpu_attention
from .detection_radio import (
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForUniversalSegmentation,
    RadioUniversalSegmentationOutput,
)
from .heads_radio import RadioForDepthEstimation, RadioForImageClassification, RadioForSemanticSegmentation
from .hub_radio import AUTO_MAP, INSTANCE_AUTO_MAP, INSTANCE_SEGMENTERS
from .image_processing_radio import RadioImageProcessor
from .modeling_radio import RadioIntermediateOutput, RadioModel, RadioModelOutput, RadioPreTrainedModel
from .outputs_radio import RadioPair
from .processing_radio import RadioProcessor
from .sam3_radio import attach_to_sam3, save_attached
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


def _register() -> None:
    transformers.AutoConfig.register(RadioConfig.model_type, RadioConfig, exist_ok=True)
    transformers.AutoImageProcessor.register(
        RadioConfig, image_processor_classes={"torchvision": RadioImageProcessor}, exist_ok=True
    )
    transformers.AutoVideoProcessor.register(RadioConfig, RadioVideoProcessor, exist_ok=True)
    transformers.AutoProcessor.register(RadioConfig, RadioProcessor, exist_ok=True)
    for auto_class in AUTO_MAP.keys() - {"AutoConfig", "AutoVideoProcessor", "AutoProcessor"}:
        model_class = globals()[AUTO_MAP[auto_class].rpartition(".")[2]]
        if INSTANCE_AUTO_MAP[auto_class] != AUTO_MAP[auto_class]:
            # A folder of an instance segmenter names it as its architecture; others get the first class.
            model_class = (model_class, *(globals()[name] for name in INSTANCE_SEGMENTERS))
        getattr(transformers, auto_class).register(RadioConfig, model_class, exist_ok=True)


_register()
nvidia.register()
register_cpu_attention()
