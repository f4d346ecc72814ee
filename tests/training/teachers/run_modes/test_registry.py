"""The table of run modes: complete, and all that a new one needs."""

import re
from typing import get_args

import pytest
import torch
from torch import nn

from training.recipe_sections import RunModeName, RunOptions, Upsampling
from training.teachers.base import RUN_MODES, Teacher, build_run_mode
from training.teachers.outputs import TeacherOutput
from training.teachers.run_modes import NativeMode, NetworkTraits


TRAITS = NetworkTraits("t", patch_size=8, size_multiple=16, native_size_px=32, runs_at_any_size=True, has_summary=False)


class Colors(Teacher):
    """Answers the mean colors of patches."""

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__("colors", summary_dim=3, feature_dim=3, patch_size=8)

    def encode(self, pixel_values):
        return TeacherOutput(pixel_values.mean((2, 3)), nn.functional.avg_pool2d(pixel_values, 8))


class MirroredMode(NativeMode):
    """A new way: it sees the image and its mirror image, and answers the mean of both."""

    def answer_batch(self, images, run):
        (whole,) = images
        (summary, features), (mirrored_summary, mirrored) = run(whole), run(whole.flip(3))
        return TeacherOutput((summary + mirrored_summary) / 2, (features + mirrored.flip(3)) / 2)


def test_the_names_of_recipes_are_those_of_the_table():
    modes, upsamplings = zip(*RUN_MODES, strict=True)
    assert set(modes) == set(get_args(RunModeName))
    assert set(upsamplings) == set(get_args(Upsampling))


@pytest.mark.parametrize(("mode", "upsample"), RUN_MODES)
def test_every_mode_knows_its_sizes_and_keeps_its_options(mode, upsample):
    folder = "folder" if upsample == "featsharp" else None
    options = RunOptions(run_mode=mode, upsample=upsample, upsampler=folder, precision="bfloat16")
    built = build_run_mode(TRAITS, options, "native")
    assert type(built) is RUN_MODES[mode, upsample]
    own_size = None if mode == "native" else 32
    assert built.options == options.replace(input_size_px=own_size)
    sizes = {"native": [(32, 80)], "fixed": [(32, 32)], "mosaic": [(16, 32)]}[mode]  # of 4 x 10 cells 1.6 x 4 fit
    assert list(built.input_sizes(4, 10)) == sizes + ([(64, 64)] if upsample in ("tiles", "featsharp") else [])


def test_a_new_way_to_run_is_a_class_and_a_line_in_the_table(monkeypatch):
    images = torch.rand(3, 3, 32, 48)
    plain = Colors().answer(images)
    monkeypatch.setitem(RUN_MODES, ("native", "bilinear"), MirroredMode)
    seen, teacher = [], Colors()
    encode = teacher.encode
    teacher.encode = lambda pixel_values: seen.append(pixel_values) or encode(pixel_values)
    mirrored = teacher.answer(images)
    assert len(seen) == 2
    assert torch.equal(seen[1], seen[0].flip(3))
    torch.testing.assert_close(mirrored.features, plain.features)  # mean colors do not change when mirrored
    for (group,), answer in zip([[images]], teacher([[images]]), strict=True):
        assert len(answer.summary) == len(group)


@pytest.mark.parametrize(("mode", "upsample"), [("native", "tiles"), ("mosaic", "featsharp")])
def test_a_pair_that_is_not_in_the_table_is_refused_by_what_is(mode, upsample):
    folder = "folder" if upsample == "featsharp" else None
    message = f"Teacher 't': `run_mode` must be 'fixed' for `upsample` {upsample!r}, got {mode!r}."
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        build_run_mode(TRAITS, RunOptions(run_mode=mode, upsample=upsample, upsampler=folder), "native")


@pytest.mark.parametrize(("mode", "upsample"), [pair for pair in RUN_MODES if pair[1] != "featsharp"])
def test_only_one_way_takes_an_upsampler(mode, upsample):
    built = build_run_mode(TRAITS, RunOptions(run_mode=mode, upsample=upsample), "native")
    with pytest.raises(ValueError, match=f"`upsample` must be 'featsharp' for an upsampler, got {upsample!r}"):
        built.use_upsampler(nn.Identity())
