import re

import pytest
import torch
from torch import nn

from training.recipe_sections import RunOptions
from training.teachers.base import Teacher
from training.teachers.featsharp import FeatSharp, UpsamplerConfig
from training.teachers.outputs import TeacherOutput, resample_features, resize_images, tokens_to_map


class EchoTeacher(Teacher):
    """Returns what it is given: pooled pixels as the summary, one cell per patch as the features."""

    image_mean, image_std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)

    def __init__(self, name="echo", *, source=None, patch_size=14, has_summary=True, **sizes):
        super().__init__(name, summary_dim=3 if has_summary else None, feature_dim=3, patch_size=patch_size, **sizes)
        self.network = nn.Conv2d(3, 3, 1)
        self.seen = None
        self.freeze()

    def encode(self, pixel_values):
        self.seen = pixel_values
        self.saw_autocast = torch.is_autocast_enabled("cpu")
        self.saw_inference_mode = torch.is_inference_mode_enabled()
        patches = nn.functional.avg_pool2d(pixel_values, self.patch_size)
        return TeacherOutput(pixel_values.mean((2, 3)) if self.summary_dim else None, patches)


def test_pixels_are_normalized_with_the_teachers_own_constants():
    teacher = EchoTeacher(patch_size=16)
    mean = torch.tensor(teacher.image_mean).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(teacher.answer(mean).summary, torch.zeros(1, 3))
    torch.testing.assert_close(
        teacher.answer(mean + torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1)).summary, torch.ones(1, 3)
    )
    assert {"mean", "std"} <= dict(teacher.named_buffers()).keys()


def test_the_native_size_gives_the_grid_that_was_asked_for():
    teacher = EchoTeacher()
    output = teacher.answer(torch.rand(2, 3, 128, 96))
    assert teacher.seen.shape == (2, 3, 112, 84)
    assert output.features.shape == (2, 3, 8, 6)
    assert output.features.dtype == output.summary.dtype == torch.float32
    teacher.set_run_mode(grid_stride=8)
    assert teacher.answer(torch.rand(2, 3, 128, 96)).features.shape == (2, 3, 16, 12)
    assert teacher.seen.shape == (2, 3, 224, 168)


def test_a_fixed_size_is_seen_and_its_features_are_resampled():
    teacher = EchoTeacher()
    teacher.set_run_mode(RunOptions(input_size_px=56))
    assert teacher.answer(torch.rand(1, 3, 128, 96)).features.shape == (1, 3, 8, 6)
    assert teacher.seen.shape == (1, 3, 56, 56)


def test_sides_are_rounded_up_to_what_the_network_takes():
    class Coarse(EchoTeacher):
        size_multiple = 32

    teacher = Coarse(patch_size=16)
    assert teacher.answer(torch.rand(1, 3, 112, 80)).features.shape == (1, 3, 7, 5)
    assert teacher.seen.shape == (1, 3, 128, 96)


def test_a_teacher_is_frozen_and_builds_no_graph():
    teacher = EchoTeacher().train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    pixel_values = torch.rand(1, 3, 32, 32, requires_grad=True)
    output = teacher.answer(pixel_values)
    assert not output.features.requires_grad
    assert teacher.saw_inference_mode
    weight = torch.ones(1, requires_grad=True)
    (weight * output.features).sum().backward()  # not possible with tensors made in inference mode
    (weight * output.summary).sum().backward()
    assert weight.grad is not None


def test_bfloat16_runs_under_autocast_only_when_asked_for():
    teacher = EchoTeacher()
    teacher.answer(torch.rand(1, 3, 32, 32))
    assert not teacher.saw_autocast
    teacher.set_run_mode(RunOptions(precision="bfloat16"))
    assert teacher.answer(torch.rand(1, 3, 32, 32)).features.dtype == torch.float32
    assert teacher.saw_autocast


def test_half_precision_outputs_become_float32():
    class Half(EchoTeacher):
        def encode(self, pixel_values):
            return TeacherOutput(*(part.bfloat16() for part in super().encode(pixel_values)))

    output = Half().answer(torch.rand(1, 3, 32, 32))
    assert output.features.dtype == output.summary.dtype == torch.float32


@pytest.mark.parametrize("upsample", ["bilinear", "tiles"])
def test_tiles_show_what_the_fixed_size_cannot(upsample):
    teacher = EchoTeacher(patch_size=4, native_size_px=16)
    stripes = torch.tensor([0.0, 1.0]).repeat_interleave(8).repeat(8).expand(1, 3, 128, 128)  # a cell each
    teacher.set_run_mode(RunOptions(run_mode="fixed", upsample=upsample), grid_stride=8)
    answer = teacher.answer(stripes)
    cells = answer.features[0, 0, 8] * teacher.std[0, 0, 0, 0] + teacher.mean[0, 0, 0, 0]
    assert cells.shape == (16,)
    contrast = (cells[5:12:2] - cells[4:12:2]).abs()
    assert contrast.min() > 0.9 if upsample == "tiles" else contrast.max() < 0.1
    assert answer.summary.shape == (1, 3)


def test_tiles_are_not_run_where_the_own_grid_is_fine_enough():
    teacher = EchoTeacher(patch_size=4, native_size_px=16)
    teacher.set_run_mode(RunOptions(run_mode="fixed", upsample="tiles"), grid_stride=8)
    teacher.answer(torch.rand(2, 3, 32, 32))
    assert teacher.seen.shape == (2, 3, 16, 16)
    teacher.answer(torch.rand(2, 3, 64, 64))
    assert teacher.seen.shape == (2 * 4, 3, 16, 16)


def test_featsharp_joins_the_whole_with_the_tiles():
    torch.manual_seed(0)
    teacher = EchoTeacher(patch_size=4, native_size_px=16)
    teacher.set_run_mode(RunOptions(run_mode="fixed", upsample="featsharp", upsampler="folder"), grid_stride=8)
    images = torch.rand(2, 3, 96, 96)
    with pytest.raises(ValueError, match="needs `use_upsampler` first"):
        teacher.answer(images)
    upsampler = FeatSharp(UpsamplerConfig(kind="echo", feature_dim=3, input_size_px=16, grid=4, width=8, num_heads=2))
    torch.nn.init.normal_(upsampler.leave.weight)
    teacher.use_upsampler(upsampler)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    sharp = teacher.answer(images).features
    assert teacher.seen.shape == (2 * 9, 3, 16, 16)
    assert sharp.shape == (2, 3, 12, 12)
    for upsample in ("tiles", "bilinear"):
        teacher.set_run_mode(RunOptions(run_mode="fixed", upsample=upsample), grid_stride=8)
        assert (teacher.answer(images).features - sharp).abs().mean() > 0.1


@pytest.mark.parametrize(("height", "width"), [(48, 48), (32, 64)])
def test_a_mosaic_slice_equals_the_features_of_the_image_alone(height, width):
    images = torch.rand(7, 3, height, width)
    sizes = {"patch_size": 14, "has_summary": False, "native_size_px": 126}
    mosaic, alone = EchoTeacher(**sizes), EchoTeacher(**sizes)
    mosaic.set_run_mode(RunOptions(run_mode="mosaic"))
    features = mosaic.answer(images).features
    assert mosaic.seen.shape[1:] == (3, 126, 126)
    assert len(mosaic.seen) == 1
    torch.testing.assert_close(features, torch.cat([alone.answer(image[None]).features for image in images]))
    # One cell of the teacher shows what one cell of the student shows.
    expected = nn.functional.avg_pool2d((resize_images(images, (height // 16 * 14, width // 16 * 14))), 14)
    torch.testing.assert_close(features * mosaic.std + mosaic.mean, expected)


def test_the_default_mode_is_the_teachers_own_and_a_size_means_fixed():
    teacher = EchoTeacher(native_size_px=56, default_mode="fixed")
    assert (teacher.run.run_mode, teacher.run.input_size_px) == ("fixed", 56)
    teacher.set_run_mode(RunOptions(run_mode="native"))
    assert (teacher.run.run_mode, teacher.run.input_size_px) == ("native", None)
    free = EchoTeacher()
    assert free.run.run_mode == "native"
    free.set_run_mode(RunOptions(input_size_px=56))
    assert (free.run.run_mode, free.run.input_size_px) == ("fixed", 56)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        (None, {"input_size_px": 100}, r"`input_size_px` must be a multiple of 14, got 100\. Use 98"),
        ("mosaic", {}, "`run_mode` must be 'native' or 'fixed' for a teacher with a summary, got 'mosaic'"),
        ("native", {"upsample": "tiles"}, "`run_mode` must be 'fixed' for `upsample` 'tiles', got 'native'"),
        (
            "native",
            {"input_size_px": 56},
            r"`run_mode` must be 'fixed' with an `input_size_px` \(56\), got 'native'",
        ),
        ("fixed", {}, "`run_mode` 'fixed' needs `input_size_px`, since it has no native size"),
    ],
)
def test_bad_run_modes_are_refused(mode, options, message):
    with pytest.raises(ValueError, match=f"Teacher 'echo': {message}"):
        EchoTeacher().set_run_mode(RunOptions(run_mode=mode, **options))


def test_a_grid_without_cells_is_refused():
    with pytest.raises(ValueError, match="Teacher 'echo': `grid_stride` must be positive, got 0"):
        EchoTeacher().set_run_mode(grid_stride=0)


def test_a_network_of_one_size_runs_at_no_other():
    teacher = EchoTeacher(native_size_px=56, runs_at_any_size=False, default_mode="fixed")
    with pytest.raises(ValueError, match="`run_mode` must be 'fixed' or 'mosaic', got 'native': it runs at 56 px only"):
        teacher.set_run_mode(RunOptions(run_mode="native"))
    with pytest.raises(ValueError, match="`input_size_px` must be 56, its only size, got 70"):
        teacher.set_run_mode(RunOptions(input_size_px=70))


def test_an_image_larger_than_the_canvas_is_shrunk_to_it():
    teacher = EchoTeacher(native_size_px=56, has_summary=False)
    teacher.set_run_mode(RunOptions(run_mode="mosaic"))
    assert teacher.input_sizes(5, 3) == ((56, 28),)
    assert teacher.answer(torch.rand(1, 3, 80, 48)).features.shape[2:] == (5, 3)
    assert teacher([[torch.rand(1, 3, 56, 28)]])[0].features.shape[2:] == (4, 2)


def test_groups_are_answered_in_order_on_the_teachers_own_grid():
    """Fixed: one pass. Native: one for all of one size. Mosaic: one canvas for all that fit."""
    grids = [(2, 3), (3, 2), (2, 3), (2, 2)]
    for mode, passes, is_own in [("fixed", 1, True), ("native", 3, False), ("mosaic", 1, False)]:
        teacher = EchoTeacher(native_size_px=126, has_summary=mode != "mosaic")
        teacher.set_run_mode(RunOptions(run_mode=mode))
        counted, encode = [], teacher.encode
        teacher.encode = lambda pixels, encode=encode, counted=counted: counted.append(1) or encode(pixels)
        groups = [[torch.rand(2, 3, *size) for size in teacher.input_sizes(*grid)] for grid in grids]
        answers = teacher(groups)
        assert len(counted) == passes
        for answer, grid, (images,) in zip(answers, grids, groups, strict=True):
            assert answer.features.shape[2:] == ((9, 9) if is_own else grid)
            cells = nn.functional.avg_pool2d(images, 14)
            torch.testing.assert_close(answer.features * teacher.std + teacher.mean, cells)
            assert (answer.summary is None) == (mode == "mosaic")


def test_a_compiled_network_gives_the_same(monkeypatch):
    compiled = []

    def compile_eagerly(function):
        compiled.append(function.__name__)
        return real_compile(function, backend="eager")

    real_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    teacher, images = EchoTeacher(), torch.rand(1, 3, 32, 32)
    expected = teacher.answer(images)
    assert teacher.can_share_cores
    teacher.compile_network()
    assert compiled == ["encode_for"]
    assert not teacher.can_share_cores
    torch.testing.assert_close(teacher.answer(images).features, expected.features)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_teacher_on_another_device_answers_on_that_of_the_images():
    teacher = EchoTeacher().to("cuda")
    output = teacher.answer(torch.rand(1, 3, 32, 32))
    assert output.features.device.type == output.summary.device.type == "cpu"
    assert teacher.seen.device.type == "cuda"


def test_a_size_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="`pixel_values` must have sides that are multiples of 16 px, got 100 x 64"):
        EchoTeacher().answer(torch.rand(1, 3, 100, 64))


def test_tokens_become_a_map_row_by_row():
    tokens = torch.arange(6.0).view(1, 6, 1)
    expected = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert tokens_to_map(tokens, torch.zeros(1, 3, 28, 42), 14)[0, 0].tolist() == expected


def test_resampling_keeps_a_constant_and_the_own_grid():
    features = torch.rand(1, 2, 4, 4)
    assert resample_features(features, 4, 4) is features
    torch.testing.assert_close(resample_features(torch.full((1, 2, 9, 9), 3.0), 4, 6), torch.full((1, 2, 4, 6), 3.0))


ANSWERS = {
    "features of floats, (batch, 3, rows, columns), got torch.float32 (2, 4, 2, 2)": lambda s, f: (
        s,
        f.repeat(1, 2, 1, 1)[:, :4],
    ),
    "features of floats, (batch, 3, rows, columns), got torch.float32 (2, 3, 4)": lambda s, f: (s, f.flatten(2)),
    "features of floats, (batch, 3, rows, columns), got torch.int64 (2, 3, 2, 2)": lambda s, f: (s, f.long()),
    "features of floats, (batch, 3, rows, columns), got torch.complex64 (2, 3, 2, 2)": lambda s, f: (s, f + 0j),
    "features of floats, (batch, 3, rows, columns), got NoneType": lambda s, f: (s, None),
    "a summary of floats, (batch, 3), got NoneType": lambda s, f: (None, f),
    "a summary of floats, (batch, 3), got torch.float32 (2, 2)": lambda s, f: (s[:, :2], f),
    "a summary of floats, (batch, 3), got torch.bool (2, 3)": lambda s, f: (s > 0, f),
    "a pair of summary and features, got torch.float32 (2, 3, 2, 2)": lambda s, f: f,
    "a pair of summary and features, got dict": lambda s, f: {"features": f},
}


@pytest.mark.parametrize("message", ANSWERS)
def test_what_a_teacher_cannot_answer_names_it_and_what_it_gave(message):
    class Changing(EchoTeacher):
        is_changed = False

        def encode(self, pixel_values):
            answer = super().encode(pixel_values)
            return ANSWERS[message](*answer) if self.is_changed else answer

    teacher = Changing(patch_size=16)
    teacher.answer(torch.rand(2, 3, 32, 32))
    teacher.is_changed = True
    with pytest.raises(ValueError, match="^" + re.escape(f"Teacher 'echo': `encode` must return {message}.") + "$"):
        teacher.answer(torch.rand(2, 3, 32, 32))


def test_summary_of_a_teacher_that_has_none_is_refused():
    class Talkative(EchoTeacher):
        def encode(self, pixel_values):
            return super().encode(pixel_values)._replace(summary=torch.zeros(len(pixel_values), 3))

    with pytest.raises(ValueError, match=r"Teacher 'echo': `encode` must return None for the summary that"):
        Talkative(patch_size=16, has_summary=False).answer(torch.rand(2, 3, 32, 32))
