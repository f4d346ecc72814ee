"""Every class that `auto_map` names, so that opening one of them brings all source files of a folder along.

A folder that was opened by remote code can then be saved again in full.
"""

from .backbone_radio import RadioBackbone
from .configuration_radio import RadioConfig
from .detection_radio import RadioForInstanceSegmentation, RadioForObjectDetection, RadioForUniversalSegmentation
from .heads_radio import RadioForDepthEstimation, RadioForImageClassification, RadioForSemanticSegmentation
from .image_processing_radio import RadioImageProcessor
from .modeling_radio import RadioModel
from .pipelines_radio import (
    RadioDepthEstimationPipeline,
    RadioImageClassificationPipeline,
    RadioImageFeatureExtractionPipeline,
    RadioImageSegmentationPipeline,
    RadioInstanceSegmentationPipeline,
    RadioObjectDetectionPipeline,
    RadioVideoClassificationPipeline,
    RadioZeroShotImageClassificationPipeline,
)
from .sam3_radio import RadioSam3Model
from .video_processing_radio import RadioVideoProcessor
from .zero_shot_radio import RadioForZeroShotImageClassification


__all__ = [
    "RadioBackbone",
    "RadioConfig",
    "RadioDepthEstimationPipeline",
    "RadioForDepthEstimation",
    "RadioForImageClassification",
    "RadioForInstanceSegmentation",
    "RadioForObjectDetection",
    "RadioForSemanticSegmentation",
    "RadioForUniversalSegmentation",
    "RadioForZeroShotImageClassification",
    "RadioImageClassificationPipeline",
    "RadioImageFeatureExtractionPipeline",
    "RadioImageProcessor",
    "RadioImageSegmentationPipeline",
    "RadioInstanceSegmentationPipeline",
    "RadioModel",
    "RadioObjectDetectionPipeline",
    "RadioSam3Model",
    "RadioVideoClassificationPipeline",
    "RadioVideoProcessor",
    "RadioZeroShotImageClassificationPipeline",
]
