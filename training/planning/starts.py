"""Starts of kernels of a step. A GPU needs some microseconds for each, whatever the kernel computes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modeling_radio.training.planning.costs import Networks
from modeling_radio.training.recipes.recipe import Recipe
from modeling_radio.training.teachers.base import by_network
from modeling_radio.training.teachers.outputs import longest_list
from modeling_radio.training.views.shapes import Grid


PER_BLOCK_OF_PASS, PER_BLOCK_OF_SHAPE = 235, 26
"""Starts for each block of the student in each pass, and for each shape of the pass, forward and backward, with DAMP
and spectral scales. This and what follows is fitted to counts by `benchmarks.kernels` of `radio_s` in passes of few and
of many shapes; a test compares the stored ones with `count_starts`."""
PER_SHAPE, PER_TEACHER_OF_SHAPE = 65, 25
"""The same for what is outside of blocks: targets, losses and the moving average (MESA)."""
PER_BLOCK_OF_CALL = 13
"""Starts for each block of a teacher in each call, counted of C-RADIOv4-H."""


class Calls(NamedTuple):
    """Calls of networks in a step of a rank.

    Attributes:
        passes: Passes of the student.
        shapes: Shapes of its images, each counted in each pass.
        seen: Pairs of a shape and a teacher that sees it.
        teachers: Calls by the teacher whose network runs.
    """

    passes: int
    shapes: int
    seen: int
    teachers: dict[str, int]


def calls_of_rank(networks: Networks, stage: Recipe, own: Mapping[str, Sequence[Sequence[Grid]]]) -> Calls:
    """Return the calls of a step.

    Args:
        networks: Student and teachers.
        stage: The stage.
        own: Images of a rank, as `BatchPlan.shapes_of_ranks` returns them.
    """
    num_passes, num_shapes, seen, calls = 0, 0, 0, dict[str, int]()
    for partition in stage.partitions:
        passes = own.get(partition.name, ())
        shapes = [set(grids) for grids in passes]
        names = [name for name in partition.teachers or networks.teachers if name in networks.teachers]
        num_passes += len(passes)
        num_shapes += sum(max(1, len(each)) for each in shapes)  # a pass without an image has a dummy
        seen += len(names) * sum(map(len, shapes))
        if stage.views.teachers == "cached":
            continue
        for first in range(0, len(shapes), stage.views.parts_at_once):
            together = set().union(*shapes[first : first + stage.views.parts_at_once])
            for reader, *_ in by_network({name: networks.teachers[name] for name in names}):
                calls[reader] = calls.get(reader, 0) + networks.teachers[reader].num_calls(together)
    return Calls(num_passes, num_shapes, seen, calls)


def count_starts(calls: Calls, student_blocks: int, teacher_blocks: Mapping[str, int]) -> float:
    """Return the starts of a step, without those of the optimizer, which are few.

    Args:
        calls: The calls.
        student_blocks: Blocks of the student.
        teacher_blocks: Blocks of each teacher's network.
    """
    of_blocks = PER_BLOCK_OF_PASS * calls.passes + PER_BLOCK_OF_SHAPE * calls.shapes
    of_teachers = sum(PER_BLOCK_OF_CALL * teacher_blocks[name] * number for name, number in calls.teachers.items())
    others = PER_SHAPE * calls.shapes + PER_TEACHER_OF_SHAPE * calls.seen
    return student_blocks * of_blocks + of_teachers + others


def starts_of_rank(networks: Networks, stage: Recipe, own: Mapping[str, Sequence[Sequence[Grid]]]) -> float:
    """Return the starts of a rank's step; arguments are those of `calls_of_rank`."""
    of_teachers = {name: teacher.num_blocks for name, teacher in networks.teachers.items()}
    return count_starts(calls_of_rank(networks, stage, own), len(longest_list(networks.student)), of_teachers)
