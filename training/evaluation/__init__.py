"""What a backbone learned: pure functions over features, and the extractors that produce them."""

from training.evaluation.adaptor_fidelity import Fidelity, adaptor_fidelity
from training.evaluation.extractors import (
    FeatureExtractor,
    Features,
    adaptor_extractor,
    backbone_extractor,
    extract_features,
    pixel_extractor,
)
from training.evaluation.knn import knn_accuracy, knn_predictions
from training.evaluation.resolution_consistency import Consistency, feature_consistency, resolution_consistency
from training.evaluation.segmentation_probe import mean_iou, segmentation_probe_miou
from training.evaluation.zero_shot import conse_embeddings, zero_shot_accuracy


__all__ = [
    "Consistency",
    "FeatureExtractor",
    "Features",
    "Fidelity",
    "adaptor_extractor",
    "adaptor_fidelity",
    "backbone_extractor",
    "conse_embeddings",
    "extract_features",
    "feature_consistency",
    "knn_accuracy",
    "knn_predictions",
    "mean_iou",
    "pixel_extractor",
    "resolution_consistency",
    "segmentation_probe_miou",
    "zero_shot_accuracy",
]
