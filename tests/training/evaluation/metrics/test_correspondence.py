import torch

from training.evaluation.metrics.correspondence import correspondence_distances


def test_a_crop_of_whole_patches_is_found_where_it_was():
    features = torch.randn(16, 8, 8)
    crop = features[:, 2:6, 4:8]
    assert correspondence_distances(features, crop, top=0.25, left=0.5, side=0.5).tolist() == [0.0] * 16
    elsewhere = correspondence_distances(features, crop, top=0.0, left=0.5, side=0.5)
    assert elsewhere.tolist() == [2.0] * 16
