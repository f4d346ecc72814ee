import pytest
import torch
from packaged import build_packaged

from training.recipe_sections import RunOptions


WIDTHS = {
    "efficientnet-lite0": (1280, 112),
    "dinov2-s-saliency": (384, 384),
    "nanodet-g": (384, 128),
}


@pytest.mark.packages
@pytest.mark.parametrize("kind", WIDTHS)
def test_each_teacher_answers_as_it_states(kind):
    teacher = build_packaged(kind)
    assert (teacher.summary_dim, teacher.feature_dim) == WIDTHS[kind]
    for height, width in ((64, 64), (96, 80)):
        output = teacher.answer(torch.rand(2, 3, height, width))
        assert (output.summary is None) == (teacher.summary_dim is None)
        assert output.summary is None or output.summary.shape == (2, teacher.summary_dim)
        assert output.features.shape == (2, teacher.feature_dim, height // 16, width // 16)
        assert output.features.isfinite().all()
    pixel_values = torch.rand(2, 3, 64, 64)
    exact = teacher.answer(pixel_values)
    teacher.set_run_mode(RunOptions(precision="bfloat16"))
    rounded = teacher.answer(pixel_values)
    assert torch.cosine_similarity(exact.features, rounded.features).mean() > 0.98
