"""Contours: Keras' file of weights, the network as a plain loop, and what the real one says of a square."""

import h5py
import pytest
import torch
from packaged import build_packaged
from torch.nn import functional as F

from training.teachers.embedded.hed_edges import HedEdgesTeacher
from training.teachers.registry import build_teacher


CONVOLUTIONS = (2, 2, 3, 3, 3)
WIDTHS = (3, 64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A package with random weights, as Keras writes them."""
    folder = tmp_path_factory.mktemp("hed")
    generator = torch.Generator().manual_seed(0)

    def write(file, group, inputs, outputs, side):
        scale = (2 / (inputs * side**2)) ** 0.5
        file[f"{group}/vars/0"] = (torch.randn(side, side, inputs, outputs, generator=generator) * scale).numpy()
        file[f"{group}/vars/1"] = (torch.randn(outputs, generator=generator) * 0.1).numpy()

    with h5py.File(folder / "hed.weights.h5", "w") as file:
        for stage, count in enumerate(CONVOLUTIONS):
            for number in range(count):
                group = f"block{stage + 1}/layers/conv2d" + (f"_{number}" if number else "")
                write(file, group, WIDTHS[stage + (number > 0)], WIDTHS[stage + 1], 3)
            write(file, f"dsn{stage + 1}", WIDTHS[stage + 1], 1, 1)
        write(file, "fuse", len(CONVOLUTIONS), 1, 1)
    return folder


def contours_by_hand(path, pixel_values):
    """The published network on pixels in [0, 1], without any of the teacher's code: probabilities."""
    bgr = pixel_values[:, [2, 1, 0]] * 255
    hidden = bgr - torch.tensor([104.00699, 116.66877, 122.67892]).view(3, 1, 1)
    with h5py.File(path) as file:

        def convolve(pixels, group):
            kernel, bias = (torch.from_numpy(file[f"{group}/vars/{number}"][()]) for number in (0, 1))
            return F.conv2d(pixels, kernel.permute(3, 2, 0, 1), bias, padding=kernel.shape[0] // 2)

        maps = []
        for stage, count in enumerate(CONVOLUTIONS, 1):
            hidden = hidden if stage == 1 else F.max_pool2d(hidden, 2)
            for number in range(count):
                hidden = convolve(hidden, f"block{stage}/layers/conv2d" + (f"_{number}" if number else "")).relu()
            maps.append(F.interpolate(convolve(hidden, f"dsn{stage}"), pixel_values.shape[2:], mode="bilinear"))
        return convolve(torch.cat(maps, 1), "fuse")


def test_it_answers_as_the_published_network(folder):
    teacher = build_teacher("t", kind="hed-edges", source=str(folder))
    assert (teacher.summary_dim, teacher.feature_dim, teacher.patch_size) == (None, 16, 16)
    pixel_values = torch.rand(2, 3, 32, 48)
    answer = teacher.answer(pixel_values)
    assert answer.summary is None
    assert answer.features.shape == (2, 16, 2, 3)
    places = F.avg_pool2d(contours_by_hand(folder / "hed.weights.h5", pixel_values), 4)
    torch.testing.assert_close(F.pixel_shuffle(answer.features, 4), places, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(HedEdgesTeacher.contours(answer.features), places.sigmoid(), rtol=1e-3, atol=1e-3)


def test_random_weights_need_no_package():
    with torch.device("meta"):
        teacher = build_teacher("t", kind="hed-edges", weights="random")
        assert teacher.answer(torch.empty(1, 3, 64, 96)).features.shape == (1, 16, 4, 6)
    count = sum(parameter.numel() for parameter in teacher.parameters())
    assert count == 14_714_688 + 1_477 + 6  # VGG16's convolutions, five maps, what joins them
    with pytest.raises(ValueError, match=r"`weights` must be one of .*, got 'none'"):
        build_teacher("t", kind="hed-edges", weights="none")


@pytest.mark.packages
def test_the_border_of_a_square_is_a_contour_and_its_inside_is_none():
    teacher = build_packaged("hed-edges")
    image = torch.full((1, 3, 128, 128), 0.2)
    image[..., 32:96, 32:96] = 0.9
    contours = teacher.contours(teacher.answer(image).features)[0, 0]
    assert contours.shape == (32, 32)
    border = torch.cat([contours[12:20, 7:9].amax(1), contours[7:9, 12:20].amax(0)])
    assert border.min() > 0.5
    assert contours[13:19, 13:19].max() < 0.1
    assert contours[:4].max() < 0.2
