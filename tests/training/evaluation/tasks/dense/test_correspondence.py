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
