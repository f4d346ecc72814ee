"""RADIO vision backbones for Hugging Face transformers."""

from .adaptors_radio import RadioAdaptorOutput
from .configuration_radio import RadioAdaptorConfig, RadioConfig
from .modeling_radio import RadioIntermediateOutput, RadioModel, RadioModelOutput, RadioPreTrainedModel


__all__ = [
    "RadioAdaptorConfig",
    "RadioAdaptorOutput",
    "RadioConfig",
    "RadioIntermediateOutput",
    "RadioModel",
    "RadioModelOutput",
    "RadioPreTrainedModel",
]
