import pytest
import torch
from tiny_upsampling import GRID, SIDE, tiny_answers

from training.teachers.run_modes.tile_upsampling import cut_tiles
from training.upsampling.answers import Answers
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


def test_answers_without_room_are_computed_again_and_are_the_same():
    answers, everything = tiny_answers(), tiny_answers()
    of_map = answers.num_bytes(1, 1) / 6  # the whole, a view and four tiles
    assert of_map == 2 * 6 * GRID**2
    answers = Answers(answers.teacher, answers.images, 2, seed=0, memory_gb=2 * of_map / 1e9)
    wanted = everything.example([0, 1], [1])
    for _ in range(2):
        for found, expected in zip(answers.example([0, 1], [1]), wanted, strict=True):
            assert found == expected if isinstance(found, list) else torch.equal(found, expected)
    answers.run = None
    answers.of_view(0, 0)
    answers.of_view(1, 0)
    with pytest.raises(TypeError):
        answers.of_view(0, 1)


def test_all_answers_take_what_was_forecast():
    answers = tiny_answers(num_images=2)
    answers.example([0, 1], [1, 2, 3])
    assert answers.num_bytes(2, 3) == sum(kept.nbytes for kept in answers._kept.values())
