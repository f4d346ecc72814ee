"""RADIO vision backbones for Hugging Face transformers."""

from .adaptors_config_radio import RadioAdaptorConfig
from .adaptors_radio import RadioAdaptorOutput
from .backbone_radio import RadioBackbone
from .classification_radio import RadioForImageClassification
from .configuration_radio import RadioConfig
from .depth_radio import RadioForDepthEstimation
from .detection_radio import RadioForInstanceSegmentation, RadioForObjectDetection
from .image_processing_radio import RadioImageProcessor
from .modeling_radio import RadioIntermediateOutput, RadioModel, RadioModelOutput, RadioPreTrainedModel
from .outputs_radio import RadioPair
from .sam3_radio import attach_to_sam3, save_attached
from .segmentation_radio import RadioForSemanticSegmentation
from .universal_radio import RadioForUniversalSegmentation, RadioUniversalSegmentationOutput
from .zero_shot_radio import RadioForZeroShotImageClassification, RadioZeroShotOutput


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
    "RadioUniversalSegmentationOutput",
    "RadioZeroShotOutput",
    "attach_to_sam3",
    "save_attached",
]
