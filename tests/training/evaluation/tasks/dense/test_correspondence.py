from torchvision.transforms.v2.functional import center_crop

from training.evaluation.data.tables import TableData
from training.evaluation.models.baselines import RawPixels
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.dense.correspondence import measure_patch_correspondence


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
