"""Patches of crops are found where they lie."""

import torch
from torchvision.transforms.v2.functional import center_crop

from training.evaluation.data_tables import TableData
from training.evaluation.models.pretrained import RawPixels
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.dense_prediction import correspondence_distances, measure_patch_correspondence


class Blind(RawPixels):
    """Answers the same everywhere."""

    def encode(self, pixels, adaptors=()):
        encoding = super().encode(pixels)
        return encoding._replace(features=encoding.features * 0 + 1)


def test_patches_are_found_by_what_they_show(noisy_folders):
    data = TableData(str(noisy_folders))
    seeing, blind = (
        {each.metric: each.value for each in measure_patch_correspondence(Evaluation(model, data))}
        for model in (RawPixels(4, 24), Blind(4, 24))
    )
    assert seeing["within 1 patch"] > blind["within 1 patch"] + 0.05
    assert seeing["within 1 patch"] < seeing["within 2 patches"]


class Cropping(RawPixels):
    """Cuts off borders unless it is told a size, as many a published preprocessing does."""

    def preprocessing(self, size_px=None):
        whole = super().preprocessing(size_px)
        return whole if size_px else lambda image: whole(center_crop(image, [min(image.shape[1:]) // 2] * 2))


def test_views_are_seen_whole(noisy_folders):
    data = TableData(str(noisy_folders))
    whole, cropping = (measure_patch_correspondence(Evaluation(kind(4, 24), data)) for kind in (RawPixels, Cropping))
    assert whole == cropping


def test_a_crop_of_whole_patches_is_found_where_it_was():
    features = torch.randn(16, 8, 8)
    crop = features[:, 2:6, 4:8]
    assert correspondence_distances(features, crop, top=0.25, left=0.5, side=0.5).tolist() == [0.0] * 16
    elsewhere = correspondence_distances(features, crop, top=0.0, left=0.5, side=0.5)
    assert elsewhere.tolist() == [2.0] * 16
