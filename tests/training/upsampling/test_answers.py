import torch
from tiny_upsampling import GRID, SIDE, tiny_answers

from training.teachers.run_modes.tile_upsampling import cut_tiles
from training.upsampling.views import WHOLE


def test_an_example_has_the_teachers_answers():
    answers = tiny_answers()
    example = answers.example([3, 5], [2, 1])
    assert example.images.shape == (2, 3, 2 * SIDE, 2 * SIDE)
    assert example.tiles.shape == (2, 6, 2 * GRID, 2 * GRID)
    assert example.targets.shape == (3, 2, 6, GRID, GRID)
    assert [len(views) for views in example.views] == [2, 2, 2]
    assert example.views[0] == [WHOLE, WHOLE]
    assert torch.equal(example.targets[0], example.whole)
    pixels = answers.pixels(5)
    corner = answers.run(cut_tiles(pixels, 2, 2)[3:])[0]
    torch.testing.assert_close(example.tiles[1, :, GRID:, GRID:], corner, rtol=2**-8, atol=0)
    assert answers.larger(5).shape == example.tiles[1:].shape


def test_the_teacher_runs_once_for_each_view():
    answers = tiny_answers()
    first = answers.example([0, 1], [1])
    answers.run = None
    assert torch.equal(answers.example([0, 1], [1]).targets, first.targets)
