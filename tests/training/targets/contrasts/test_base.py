from functools import partial

import pytest
import torch
from two_forks import run_two_forks

from foundation.ranks import rank_and_count
from training.targets.contrasts.base import Image, gather_step


BLOCKS: dict[Image, list[float]] = {(0, 0): [1.0, 2.0], (0, 1): [3.0], (0, 2): [], (1, 0): [4.0, 5.0, 6.0]}
SPLITS = ([[(1, 0), (0, 1)], [(0, 2), (0, 0)]], [[(0, 0), (0, 1), (0, 2), (1, 0)], []])


def gather(images: list[Image]) -> None:
    rows = torch.tensor([value for image in images for value in BLOCKS[image]])[:, None]
    step = gather_step({"t": [(image, len(BLOCKS[image])) for image in images]}, {"t": rows})["t"]
    assert step.rows[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert step.places == {(0, 0): 0, (0, 1): 2, (0, 2): 3, (1, 0): 3}


def gather_part(split: list[list[Image]]) -> None:
    gather(split[rank_and_count()[0]])


def test_a_single_process_sorts_its_rows_by_image() -> None:
    gather([(1, 0), (0, 1), (0, 0), (0, 2)])


@pytest.mark.parametrize("split", SPLITS)
def test_ranks_have_the_same_rows_however_they_are_divided(split: list[list[Image]], tmp_path) -> None:
    run_two_forks(partial(gather_part, split), tmp_path)
