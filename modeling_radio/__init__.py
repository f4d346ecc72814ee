"""RADIO vision backbones for Hugging Face transformers."""

from .adaptors_radio import RadioAdaptorOutput
from .backbone_radio import RadioBackbone
from .configuration_radio import RadioAdaptorConfig, RadioConfig
from .image_processing_radio import RadioImageProcessor
from .modeling_radio import RadioIntermediateOutput, RadioModel, RadioModelOutput, RadioPreTrainedModel


__all__ = [
    "RadioAdaptorConfig",
    "RadioAdaptorOutput",
    "RadioBackbone",
    "RadioConfig",
    "RadioImageProcessor",
    "RadioIntermediateOutput",
    "RadioModel",
    "RadioModelOutput",
    "RadioPreTrainedModel",
]
