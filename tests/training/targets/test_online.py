"""Online targets against what the teacher says of the student's very pixels."""

import torch
from mean_colors import CPU, NUM_IMAGES, PATCH, TEACHERS, Images, MeanColor, check_the_average_view, recipe_with

from training.recipe import ViewsRecipe
from training.targets.online import OnlineTargets
from training.views.batches import BatchPlan


def test_online_shift_says_where_the_teachers_crop_lies() -> None:
    views = ViewsRecipe(max_shift_patches=1, shift_deviation_patches=2.0)
    recipe = recipe_with(views)
    source = OnlineTargets(recipe, PATCH, Images(), TEACHERS, CPU)
    shifts = []
    for _, example in source.examples(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 4)):
        student = MeanColor()(example.pixel_values).features
        target = example.targets["coarse"]
        assert target.shift is not None
        shifts.append(target.shift)
        rows = student.shape[2]
        for image, (row, col) in enumerate(target.shift.tolist()):
            overlap = student[image, :, max(row, 0) : rows + min(row, 0), max(col, 0) : rows + min(col, 0)]
            seen = target.features[image, :, max(-row, 0) : rows + min(-row, 0), max(-col, 0) : rows + min(-col, 0)]
            torch.testing.assert_close(overlap, seen)
    assert torch.cat(shifts).abs().max() == 2
    assert (example.targets["coarse"].shift != example.targets["fine"].shift).any()


def test_jitter_is_for_the_student_only() -> None:
    plain = recipe_with(ViewsRecipe(max_shift_patches=0))
    jittered = recipe_with(ViewsRecipe(max_shift_patches=0, brightness=0.5, contrast=0.5))
    (one,), (two,) = (
        [
            example
            for _, example in OnlineTargets(recipe, PATCH, Images(), TEACHERS, CPU).examples(
                lambda recipe=recipe: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 1)
            )
        ]
        for recipe in (plain, jittered)
    )
    assert torch.equal(one.targets["coarse"].features, two.targets["coarse"].features)
    assert not torch.equal(one.pixel_values, two.pixel_values)


def test_moving_average_sees_another_crop_that_the_shift_explains() -> None:
    views = ViewsRecipe(shift_deviation_patches=2.0, flip_probability=0.5, brightness=0.2, contrast=0.2)
    recipe = recipe_with(views)
    check_the_average_view(OnlineTargets(recipe, PATCH, Images(), TEACHERS, CPU), recipe)
