import pytest
import torch
from torch import nn

from training.teachers.base import Teacher, TeacherOutput, resample_features, tokens_to_map


class EchoTeacher(Teacher):
    """Returns what it is given: pooled pixels as the summary, one cell per patch as the features."""

    image_mean, image_std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)

    def __init__(self, name="echo", *, source=None, patch_size=14):
        super().__init__(name, summary_dim=3, feature_dim=3, patch_size=patch_size)
        self.network = nn.Conv2d(3, 3, 1)
        self.seen = None
        self.freeze()

    def encode(self, pixel_values):
        self.seen = pixel_values
        self.saw_autocast = torch.is_autocast_enabled("cpu")
        patches = nn.functional.avg_pool2d(pixel_values, self.patch_size)
        return TeacherOutput(pixel_values.mean((2, 3)).bfloat16(), patches.bfloat16())


def test_pixels_are_normalised_with_the_teachers_own_constants():
    teacher = EchoTeacher(patch_size=16)
    mean = torch.tensor(teacher.image_mean).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(teacher(mean).summary, torch.zeros(1, 3))
    torch.testing.assert_close(
        teacher(mean + torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1)).summary, torch.ones(1, 3)
    )
    assert {"mean", "std"} <= dict(teacher.named_buffers()).keys()


def test_the_native_size_gives_the_grid_that_was_asked_for():
    teacher = EchoTeacher()
    output = teacher(torch.rand(2, 3, 128, 96))
    assert teacher.seen.shape == (2, 3, 112, 84)
    assert output.features.shape == (2, 3, 8, 6)
    assert output.features.dtype == output.summary.dtype == torch.float32
    teacher.set_run_mode(grid_stride=8)
    assert teacher(torch.rand(2, 3, 128, 96)).features.shape == (2, 3, 16, 12)
    assert teacher.seen.shape == (2, 3, 224, 168)


def test_a_fixed_size_is_seen_and_its_features_are_resampled():
    teacher = EchoTeacher()
    teacher.set_run_mode(input_size=56)
    assert teacher(torch.rand(1, 3, 128, 96)).features.shape == (1, 3, 8, 6)
    assert teacher.seen.shape == (1, 3, 56, 56)


def test_sides_are_rounded_up_to_what_the_network_takes():
    class Coarse(EchoTeacher):
        size_multiple = 32

    teacher = Coarse(patch_size=16)
    assert teacher(torch.rand(1, 3, 112, 80)).features.shape == (1, 3, 7, 5)
    assert teacher.seen.shape == (1, 3, 128, 96)


def test_a_teacher_is_frozen_and_builds_no_graph():
    teacher = EchoTeacher().train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    pixel_values = torch.rand(1, 3, 32, 32, requires_grad=True)
    output = teacher(pixel_values)
    assert not output.features.requires_grad
    weight = torch.ones(1, requires_grad=True)
    (weight * output.features).sum().backward()  # not possible with tensors made in inference mode
    assert weight.grad is not None


def test_bfloat16_runs_under_autocast_only_when_asked_for():
    teacher = EchoTeacher()
    teacher(torch.rand(1, 3, 32, 32))
    assert not teacher.saw_autocast
    teacher.set_run_mode(precision="bfloat16")
    assert teacher(torch.rand(1, 3, 32, 32)).features.dtype == torch.float32
    assert teacher.saw_autocast


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_stride": 0}, "grid_stride must be positive, not 0"),
        ({"input_size": 100}, "input_size 100 is not a multiple of 14; the nearest is 98"),
        ({"precision": "float16"}, "precision must be float32 or bfloat16, not 'float16'"),
    ],
)
def test_bad_run_modes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EchoTeacher().set_run_mode(**options)


def test_a_size_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="image size 100 x 64 is not a multiple of its grid_stride 16"):
        EchoTeacher()(torch.rand(1, 3, 100, 64))


def test_tokens_become_a_map_row_by_row():
    tokens = torch.arange(6.0).view(1, 6, 1)
    expected = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert tokens_to_map(tokens, torch.zeros(1, 3, 28, 42), 14)[0, 0].tolist() == expected


def test_resampling_keeps_a_constant_and_the_own_grid():
    features = torch.rand(1, 2, 4, 4)
    assert resample_features(features, 4, 4) is features
    torch.testing.assert_close(resample_features(torch.full((1, 2, 9, 9), 3.0), 4, 6), torch.full((1, 2, 4, 6), 3.0))


def test_the_description_states_how_it_runs():
    teacher = EchoTeacher()
    assert "patch 14" in teacher.describe()
    assert "native size" in teacher.describe()
    teacher.set_run_mode(input_size=56)
    assert "56 px, features resampled" in teacher.describe()
