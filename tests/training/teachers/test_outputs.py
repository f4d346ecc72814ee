"""Features of a teacher's own blocks, of all published classes and of classes that know no blocks."""

import pytest
import torch
from tiny_distillation import TinyTeacher
from torch import Tensor, nn

from training.recipe_sections import RunOptions
from training.teachers.base import Teacher
from training.teachers.outputs import BlockListener, TeacherOutput, longest_list, resize_images


class Blocks(Teacher):
    """Four blocks, the last of which answers."""

    image_mean, image_std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, width: int = 4) -> None:
        super().__init__("t", summary_dim=width, feature_dim=width, patch_size=16, native_size_px=64)
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Conv2d(3, width, 16, 16)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(4)])
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        maps = self.embed(pixel_values)
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return TeacherOutput(tokens[:, 0], tokens[:, 1:].transpose(1, 2).unflatten(2, maps.shape[2:]))

    def blocks(self) -> nn.ModuleList:
        return self.layers


def normed(features: Tensor) -> Tensor:
    return nn.functional.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def test_features_of_blocks_follow_the_last_ones_and_change_nothing_else() -> None:
    pixel_values = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    plain, teacher = Blocks().answer(pixel_values), Blocks()
    teacher.use_depths([0.25, 0.5, 1.0])
    ((summary, features),) = teacher([[pixel_values]])
    assert torch.equal(summary, plain.summary)
    last, *inner = features.chunk(4, dim=1)
    assert torch.equal(last, plain.features)
    assert torch.equal(teacher.answer(pixel_values).features, plain.features)  # as pictures and measurements ask
    torch.testing.assert_close(inner[2], normed(last))
    first = Blocks()
    del first.layers[1:]
    torch.testing.assert_close(inner[0], normed(first.answer(pixel_values).features))
    assert not torch.allclose(inner[0], inner[1], atol=0.1)


@pytest.mark.parametrize(
    "run",
    [RunOptions(run_mode="fixed", input_size_px=64), RunOptions(run_mode="fixed", input_size_px=32, upsample="tiles")],
    ids=["fixed", "tiles"],
)
def test_every_run_mode_treats_them_like_the_last_ones(run: RunOptions) -> None:
    pixel_values = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    teacher = Blocks()
    teacher.set_run_mode(run)
    inputs = [[resize_images(pixel_values, size) for size in teacher.input_sizes(4, 4)]]
    ((_, plain),) = teacher(inputs)
    teacher.use_depths([0.5])
    last, inner = teacher(inputs)[0].features.chunk(2, dim=1)
    torch.testing.assert_close(last, plain)
    assert inner.shape == last.shape
    assert inner.isfinite().all()


def test_mosaics_are_cut_apart_for_each_block() -> None:
    class WithoutSummary(Blocks):
        def __init__(self) -> None:
            super().__init__()
            self.summary_dim = None

        def encode(self, pixel_values: Tensor) -> TeacherOutput:
            return super().encode(pixel_values)._replace(summary=None)

    images = [[torch.rand(2, 3, 32, 48)], [torch.rand(1, 3, 16, 16)]]
    teacher, alone = WithoutSummary(), Blocks()
    teacher.set_run_mode(RunOptions(run_mode="mosaic"))
    for each in (teacher, alone):
        each.use_depths([0.5])
    answers, expected = teacher(images), alone(images)
    for answer, other in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer.features, other.features)


def test_a_class_without_blocks_is_refused_by_name() -> None:
    teacher = TinyTeacher("tiny", feature_dim=4)
    with pytest.raises(ValueError, match=r"^Teacher 'tiny': `taps\.targets` must be 'last' .* its kind knows none"):
        teacher.use_depths([0.5])
    sharp = Blocks()
    sharp.set_run_mode(RunOptions(run_mode="fixed", upsample="featsharp", upsampler="folder"))
    with pytest.raises(ValueError, match="`upsample` is 'featsharp'"):
        sharp.use_depths([0.5])


def test_the_blocks_are_the_longest_list_of_modules_of_one_class() -> None:
    network = nn.Module()
    network.mixed = nn.ModuleList([nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU()])
    network.short = nn.ModuleList([nn.ReLU()])
    network.blocks = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
    assert list(longest_list(network)) == list(network.blocks)
    assert list(longest_list(nn.Linear(1, 1))) == []


@pytest.mark.parametrize(("depth", "index"), [(0.01, 0), (1 / 3, 3), (2 / 3, 6), (0.5, 5), (1.0, 10)])
def test_a_depth_is_the_nearest_block(depth: float, index: int) -> None:
    blocks = [nn.Identity() for _ in range(11)]
    listener = BlockListener(blocks, [depth])
    for number, block in enumerate(blocks):
        block(torch.full((1, 1, 2), float(number)) + torch.tensor([0.0, 1.0 + number]))
    del listener
    assert [len(block._forward_hooks) for block in blocks].index(1) == index
