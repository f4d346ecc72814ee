"""Runs whose crops are turned, zoomed and tilted: exact as all others, and different from them."""

import pytest
import tiny_distillation as tiny
from comparisons import assert_close_by_name

from training.recipe import RecipeError


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

MOVING = (
    "views={teachers: online, crop_scale: [0.3, 0.6], max_rotation_degrees: 20, max_zoom: 1.2, max_perspective: 0.05}"
)
STRAIGHT = "views={teachers: online, crop_scale: [0.3, 0.6]}"
MESA = "mesa={weight: 0.5, start_step: 1}"


@pytest.mark.parametrize("partition", [(), tiny.PACKED], ids=["square", "packed"])
def test_a_restarted_run_equals_an_undisturbed_one(recipe_file: str, partition: tuple[str, ...]) -> None:
    settings = [MOVING, MESA, *partition]
    tiny.distil(recipe_file, "whole", *settings)
    tiny.distil(recipe_file, "parts", *settings, stop_at=5)
    tiny.distil(recipe_file, "parts", *settings)
    tiny.assert_same_tensors(tiny.last_state("whole"), tiny.last_state("parts"))


def test_accumulated_parts_equal_the_whole_batch(recipe_file: str) -> None:
    settings = [*tiny.SPLIT_SETTINGS, MOVING, MESA, "student.config.drop_path_rate=0"]
    tiny.distil(recipe_file, "whole", *settings)
    tiny.distil(recipe_file, "parts", *settings, "partitions.low.accumulation_steps=2")
    assert_close_by_name(tiny.last_state("parts"), tiny.last_state("whole"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("motion", ["max_rotation_degrees=20", "max_zoom=1.2", "max_perspective=0.05"])
def test_every_motion_acts(recipe_file: str, motion: str) -> None:
    tiny.distil(recipe_file, "straight", STRAIGHT, stop_at=3)
    tiny.distil(recipe_file, "moving", STRAIGHT, f"views.{motion}", stop_at=3)
    straight, moving = (tiny.last_state(output, 3) for output in ("straight", "moving"))
    assert any(not straight[key].equal(moving[key]) for key in straight if key.startswith("student/"))


def test_dense_contrasts_are_refused(recipe_file: str) -> None:
    with pytest.raises(RecipeError, match=r"`contrastive.kind` must be 'relational' or 'info_nce' where crops"):
        tiny.distil(recipe_file, "run", MOVING, "contrastive={weight: 0.1, kind: dense}")
