import torch

from modeling_radio.evaluation.models.teachers import TeacherFeatures
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.training.teachers.base import HALF_MEAN, HALF_STD, Teacher
from modeling_radio.training.teachers.outputs import TeacherOutput


class Colors(Teacher):
    image_mean, image_std = HALF_MEAN, HALF_STD

    def __init__(self, grid_stride=8):
        super().__init__("colors", summary_dim=3, feature_dim=3, patch_size=8)
        self.set_run_mode(grid_stride=grid_stride)
        self.freeze()

    def encode(self, pixel_values):
        return TeacherOutput(pixel_values.mean((2, 3)), torch.nn.functional.avg_pool2d(pixel_values, 8))


def test_a_teacher_gets_whole_patches_and_normalizes_by_itself():
    model = TeacherFeatures(Colors(), patch_size=8, size_px=24, name="teacher colors")
    assert isinstance(model, FeatureModel)
    pixels = model.preprocess(torch.full((3, 50, 100), 255, dtype=torch.uint8))
    assert pixels.shape == (3, 24, 48)
    encoding = model.encode(pixels[None])
    assert torch.allclose(encoding.summary, torch.ones(1, 3), atol=1e-6)
    assert encoding.features.shape == (1, 3, 3, 6)


def test_the_fingerprint_knows_what_decides_the_features():
    def fingerprint(stride=8, **changes):
        teacher = Colors(stride)
        for name, value in changes.items():
            setattr(teacher, name, value)
        return TeacherFeatures(teacher, patch_size=stride, size_px=24, name="t").fingerprint()

    assert fingerprint() == fingerprint()
    others = [fingerprint(options={"level": level}) for level in (0, 1)]
    others += [fingerprint(stride=4), fingerprint(activation=torch.nn.GELU())]
    assert len({fingerprint(), *others}) == 5
