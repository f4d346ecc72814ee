"""The base class in all run modes, with features of inner blocks, and the table of run modes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.base import RUN_MODES, Teacher, build_run_mode
from modeling_radio.training.teachers.featsharp import FeatSharp, UpsamplerConfig
from modeling_radio.training.teachers.outputs import TeacherOutput, resize_images
from modeling_radio.training.teachers.run_modes import NetworkTraits


class EchoTeacher(Teacher):
    """Returns its input: pooled pixels as the summary, the mean of each patch as the features."""

    image_mean, image_std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)

    def __init__(self, *, patch_size=14, has_summary=True, **sizes):
        super().__init__("echo", summary_dim=3 if has_summary else None, feature_dim=3, patch_size=patch_size, **sizes)
        self.network = nn.Conv2d(3, 3, 1)
        self.seen: list[Tensor] = []
        self.freeze()

    def encode(self, pixel_values):
        self.seen.append(pixel_values)
        self.state = torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()
        patches = F.avg_pool2d(pixel_values, self.patch_size)
        return TeacherOutput(pixel_values.mean((2, 3)) if self.summary_dim else None, patches)

    def sizes_seen(self):
        return [tuple(pixels.shape) for pixels in self.seen]


def running(run: RunOptions | None = None, grid_stride: int = 16, **sizes) -> EchoTeacher:
    teacher = EchoTeacher(**sizes)
    teacher.set_run_mode(run, grid_stride)
    return teacher


def test_pixels_are_normalized_with_the_teachers_own_constants():
    teacher = EchoTeacher(patch_size=16)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (teacher.image_mean, teacher.image_std))
    for factor in (0.0, 1.0):
        images = (mean + factor * std).expand(1, 3, 32, 32)
        torch.testing.assert_close(teacher.extract_features(images).summary, torch.full((1, 3), factor))
    assert {"mean", "std"} <= dict(teacher.named_buffers()).keys()


class Coarse(EchoTeacher):
    size_multiple = 32


@pytest.mark.parametrize(
    ("teacher", "given", "seen", "grid"),
    [
        (EchoTeacher(), (128, 96), (112, 84), (8, 6)),
        (running(grid_stride=8), (128, 96), (224, 168), (16, 12)),
        (running(RunOptions(input_size_px=56)), (128, 96), (56, 56), (8, 6)),
        (Coarse(patch_size=16), (112, 80), (128, 96), (7, 5)),  # rounded up to a size that the network takes
    ],
    ids=["native", "finer student", "fixed", "multiple"],
)
def test_features_come_on_the_students_grid(teacher, given, seen, grid):
    output = teacher.extract_features(torch.rand(2, 3, *given))
    assert teacher.sizes_seen() == [(2, 3, *seen)]
    assert output.features.shape == (2, 3, *grid)
    with pytest.raises(ValueError, match=r"`pixel_values` .* 100 x 64"):
        teacher.extract_features(torch.rand(1, 3, 100, 64))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input_size_px": 56},
        {"input_size_px": 56, "upsample": "tiles"},
        {"run_mode": "mosaic", "input_size_px": 56},
    ],
    ids=["native", "fixed", "tiles", "mosaic"],
)
@pytest.mark.parametrize("grid", [(4, 3), (2, 9), (8, 8)])
def test_sides_of_the_own_grid_are_known_before_a_pass(options, grid):
    teacher = running(RunOptions(**options), has_summary=options.get("run_mode") != "mosaic")
    (output,) = teacher([[torch.rand(1, 3, *size) for size in teacher.input_sizes(*grid)]])
    assert output.features.shape[2:] == teacher.output_sides(*grid)


def test_a_teacher_is_frozen_and_builds_no_graph():
    teacher = EchoTeacher().train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    output = teacher.extract_features(torch.rand(1, 3, 32, 32, requires_grad=True))
    assert teacher.state == (False, True)
    weight = torch.ones(1, requires_grad=True)
    for part in output:
        assert not part.requires_grad
        (weight * part).sum().backward()  # not possible with tensors made in inference mode
    assert weight.grad is not None


def test_outputs_are_float32_whatever_the_precision():
    class Half(EchoTeacher):
        def encode(self, pixel_values):
            return TeacherOutput(*(part.bfloat16() for part in super().encode(pixel_values)))

    teacher = Half()
    teacher.set_run_mode(RunOptions(dtype="bfloat16"))
    output = teacher.extract_features(torch.rand(1, 3, 32, 32))
    assert teacher.state == (True, True)
    assert output.features.dtype == output.summary.dtype == torch.float32


@pytest.mark.parametrize("upsample", ["bilinear", "tiles"])
def test_tiles_show_what_the_fixed_size_cannot_and_run_where_the_own_grid_is_too_coarse(upsample):
    teacher = running(RunOptions(run_mode="fixed", upsample=upsample), 8, patch_size=4, native_size_px=16)
    stripes = torch.tensor([0.0, 1.0]).repeat_interleave(8).repeat(8).expand(1, 3, 128, 128)  # a patch each
    answer = teacher.extract_features(stripes)
    patches = answer.features[0, 0, 8] * teacher.std[0, 0, 0, 0] + teacher.mean[0, 0, 0, 0]
    contrast = (patches[5:12:2] - patches[4:12:2]).abs()
    assert contrast.min() > 0.9 if upsample == "tiles" else contrast.max() < 0.1
    assert answer.summary.shape == (1, 3)
    teacher.seen.clear()
    for side in (32, 64):
        teacher.extract_features(torch.rand(2, 3, side, side))
    whole = (2, 3, 16, 16)
    assert teacher.sizes_seen() == [whole, whole, *([(2 * 4, 3, 16, 16)] if upsample == "tiles" else [])]


def test_featsharp_joins_the_whole_with_the_tiles():
    torch.manual_seed(0)
    run = RunOptions(run_mode="fixed", upsample="featsharp", upsampler="folder")
    teacher, images = running(run, 8, patch_size=4, native_size_px=16), torch.rand(2, 3, 96, 96)
    with pytest.raises(ValueError, match="`use_upsampler`"):
        teacher.extract_features(images)
    upsampler = FeatSharp(UpsamplerConfig(kind="echo", feature_dim=3, input_size_px=16, grid=4, width=8, num_heads=2))
    torch.nn.init.normal_(upsampler.leave.weight)
    teacher.use_upsampler(upsampler)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    sharp = teacher.extract_features(images).features
    assert teacher.sizes_seen()[-1] == (2 * 9, 3, 16, 16)
    assert sharp.shape == (2, 3, 12, 12)
    for upsample in ("tiles", "bilinear"):
        teacher.set_run_mode(RunOptions(run_mode="fixed", upsample=upsample), grid_stride=8)
        assert (teacher.extract_features(images).features - sharp).abs().mean() > 0.1
        with pytest.raises(ValueError, match=f"`upsample` .*{upsample!r}"):
            teacher.use_upsampler(upsampler)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (32, 64)])
def test_a_mosaic_slice_equals_the_features_of_the_image_alone(height, width):
    images = torch.rand(7, 3, height, width)
    sizes = {"has_summary": False, "native_size_px": 126}
    mosaic, alone = running(RunOptions(run_mode="mosaic"), **sizes), running(**sizes)
    features = mosaic.extract_features(images).features
    assert mosaic.sizes_seen() == [(1, 3, 126, 126)]
    torch.testing.assert_close(features, torch.cat([alone.extract_features(image[None]).features for image in images]))
    # One patch of the teacher shows what one patch of the student shows.
    expected = F.avg_pool2d((resize_images(images, (height // 16 * 14, width // 16 * 14))), 14)
    torch.testing.assert_close(features * mosaic.std + mosaic.mean, expected)
    assert mosaic.input_sizes(12, 8) == ((126, 84),)  # larger than the canvas
    assert mosaic.extract_features(torch.rand(1, 3, 192, 128)).features.shape[2:] == (12, 8)


FIXED = {"native_size_px": 56, "default_mode": "fixed"}


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        (FIXED, {}, ("fixed", 56)),
        (FIXED, {"run_mode": "native"}, ("native", None)),
        ({}, {}, ("native", None)),
        ({}, {"input_size_px": 56}, ("fixed", 56)),
        ({}, {"input_size_px": 100}, "input_size_px"),
        ({}, {"run_mode": "mosaic"}, "run_mode"),
        ({}, {"run_mode": "native", "upsample": "tiles"}, "run_mode"),
        ({}, {"run_mode": "native", "input_size_px": 56}, "run_mode"),
        ({}, {"run_mode": "fixed"}, "run_mode"),
        ({"native_size_px": 56, "runs_at_any_size": False}, {"run_mode": "native"}, "run_mode"),
        ({**FIXED, "runs_at_any_size": False}, {"input_size_px": 70}, "input_size_px"),
    ],
)
def test_options_choose_a_mode_and_a_size_or_are_refused(sizes, options, expected):
    if "default_mode" not in sizes:
        sizes = {**sizes, "default_mode": "fixed" if "native_size_px" in sizes else "native"}
    teacher = EchoTeacher(**sizes)
    if isinstance(expected, tuple):
        teacher.set_run_mode(RunOptions(**options))
        assert (teacher.run.run_mode, teacher.run.input_size_px) == expected
        return
    with pytest.raises(ValueError, match=f"Teacher 'echo': `{expected}`"):
        teacher.set_run_mode(RunOptions(**options))


@pytest.mark.parametrize(("mode", "passes", "is_own"), [("fixed", 1, True), ("native", 3, False), ("mosaic", 1, False)])
def test_groups_are_answered_in_order_on_the_teachers_own_grid(mode, passes, is_own):
    """Fixed: one pass. Native: one for all of one size. Mosaic: one canvas for all that fit."""
    grids = [(2, 3), (3, 2), (2, 3), (2, 2)]
    teacher = running(RunOptions(run_mode=mode), native_size_px=126, has_summary=mode != "mosaic")
    groups = [[torch.rand(2, 3, *size) for size in teacher.input_sizes(*grid)] for grid in grids]
    answers = teacher(groups)
    assert len(teacher.seen) == passes
    for answer, grid, (images,) in zip(answers, grids, groups, strict=True):
        assert answer.features.shape[2:] == ((9, 9) if is_own else grid)
        torch.testing.assert_close(answer.features * teacher.std + teacher.mean, F.avg_pool2d(images, 14))
        assert (answer.summary is None) == (mode == "mosaic")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_teacher_on_another_device_answers_on_that_of_the_images():
    teacher = EchoTeacher().to("cuda")
    output = teacher.extract_features(torch.rand(1, 3, 32, 32))
    assert output.features.device.type == output.summary.device.type == "cpu"
    assert teacher.seen[0].device.type == "cuda"


# The table of run modes.


@pytest.mark.parametrize(("mode", "upsample"), RUN_MODES)
def test_every_mode_knows_its_sizes_and_keeps_its_options(mode, upsample):
    traits = NetworkTraits("t", 8, 16, native_size_px=32, runs_at_any_size=True, has_summary=False)
    folder = "folder" if upsample == "featsharp" else None
    options = RunOptions(run_mode=mode, upsample=upsample, upsampler=folder, dtype="bfloat16")
    built = build_run_mode(traits, options, "native")
    assert built.options == options.replace(input_size_px=None if mode == "native" else 32)
    sizes = {"native": [(32, 80)], "fixed": [(32, 32)], "mosaic": [(16, 32)]}[mode]  # of 4 x 10 patches 1.6 x 4 fit
    assert list(built.input_sizes(4, 10)) == sizes + ([(64, 64)] if upsample in ("tiles", "featsharp") else [])
