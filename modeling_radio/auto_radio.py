"""Every class that `auto_map` names, so that opening one of them brings all source files of a folder along.

A folder that was opened by remote code can then be saved again in full.
"""

from .backbone_radio import RadioBackbone
from .configuration_radio import RadioConfig
from .image_processing_radio import RadioImageProcessor
from .modeling_radio import RadioModel


__all__ = ["RadioBackbone", "RadioConfig", "RadioImageProcessor", "RadioModel"]
