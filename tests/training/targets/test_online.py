"""Online targets against the teacher's features of the student's very pixels."""

import math
from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from mean_colors import (
    CPU,
    NUM_IMAGES,
    PATCH,
    SIDE,
    TEACHERS,
    Images,
    MeanColor,
    check_the_average_view,
    recipe_with,
    shifts_of,
)
from small_recipes import small_recipe
from torch import Tensor, nn

from modeling_radio.training.recipes.recipe import LossRecipe, Recipe, StandardizationRecipe, TeacherRecipe, ViewsRecipe
from modeling_radio.training.targets.examples import Example
from modeling_radio.training.targets.feature_cache import TeacherOutputs
from modeling_radio.training.targets.online import OnlineTargets
from modeling_radio.training.targets.statistics import TeacherStatistics
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.training.teachers.registry import share_network
from modeling_radio.training.views.plan import BatchPlan, PlannedBatch


PACKED = {"batch_size": None, "token_budget": 60}


def examples_of(
    recipe: Recipe, steps: int, teachers=TEACHERS, images: Images | None = None
) -> list[tuple[PlannedBatch, Example]]:
    source = OnlineTargets(recipe, PATCH, images or Images(), teachers, CPU)
    return list(source.examples(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, steps)))


def overlap(maps: Tensor, row: int, col: int) -> Tensor:
    """Return the part of a map that another map shows, too, which lies so far below and to the right of it."""
    rows, cols = maps.shape[1:]
    return maps[:, max(row, 0) : rows + min(row, 0), max(col, 0) : cols + min(col, 0)]


@pytest.mark.usefixtures("far_shifts")
@pytest.mark.parametrize(
    ("is_square", "partition"), [(True, {}), (False, {}), (False, PACKED)], ids=["square", "any aspect", "packed"]
)
def test_shift_is_between_the_students_crop_and_the_teachers(is_square: bool, partition: dict) -> None:
    """Shown on images that are smooth enough for two resized crops to agree where both show the same."""
    views = ViewsRecipe(max_shift_patches=1, crop_scale=(0.2, 0.4), is_square=is_square)
    shifts, are_equal = [], []
    for batch, example in examples_of(recipe_with(views, **partition), 6):
        target = example.targets["coarse"]
        for number, (shape, group) in enumerate(batch.groups):
            student = MeanColor().extract_features(example.pixel_values[number]).features
            assert student.shape[2:] == shape.grid
            coarse, fine = (shifts_of(each.alignments[number], shape.grid) for each in example.targets.values())
            assert coarse.shape == (group.stop - group.start, 2)
            are_equal.append(torch.equal(coarse, fine))
            shifts.append(coarse)
            for image, (row, col) in enumerate(coarse.tolist()):
                crops = overlap(student[image], row, col), overlap(target.features[number][image], -row, -col)
                torch.testing.assert_close(*crops, atol=0.02, rtol=0)
    assert torch.cat(shifts).abs().max() == 2
    assert not all(are_equal)  # each teacher has its own


def test_teachers_have_their_own_grid_in_the_order_of_the_images() -> None:
    views = ViewsRecipe(max_shift_patches=0, is_square=False, brightness=0.1)
    for batch, example in examples_of(recipe_with(views, **PACKED), 3):
        for (shape, _), features in zip(batch.groups, example.targets["fine"].features, strict=True):
            assert features.shape[2:] == (2 * shape.grid.rows, 2 * shape.grid.cols)
        means = torch.cat([features.mean((2, 3)) for features in example.targets["fine"].features])
        torch.testing.assert_close(example.targets["coarse"].summary, means)


@pytest.mark.parametrize("partition", [{}, PACKED], ids=["square", "packed"])
def test_each_teacher_gets_its_own_images_alone(partition: dict) -> None:
    """Its targets are those images' targets among those of all images."""
    views = ViewsRecipe(is_square=not partition, parts_at_once=2)
    settings = {"accumulation_steps": 2, **partition}
    everything = examples_of(recipe_with(views, **settings), 3)
    dealt = examples_of(recipe_with(views, **settings, teachers_per_image=1), 3)
    for (_, whole), (batch, example) in zip(everything, dealt, strict=True):
        assert all(map(torch.equal, example.pixel_values, whole.pixel_values))
        places = [place for target in example.targets.values() for place in target.images.places.tolist()]
        assert sorted(places) == list(range(len(batch)))
        for name, target in example.targets.items():
            if name == "coarse":
                assert torch.equal(target.summary, whole.targets[name].summary[target.images.places])
            for maps, own, (group, inside) in zip(
                target.features, target.alignments, target.images.groups, strict=True
            ):
                assert torch.equal(maps, whole.targets[name].features[group][inside])
                assert torch.equal(own.shift, whole.targets[name].alignments[group].shift[inside])


@pytest.mark.parametrize(("parts_at_once", "passes"), [(2, 4), (9, 2)])
def test_several_parts_in_one_pass_of_the_teachers(parts_at_once: int, passes: int) -> None:
    """Three parts a step: the same targets, in fewer passes, and no image of the next step is read ahead."""

    class Counting(MeanColor):
        num_passes = 0

        def forward(self, groups: Sequence[Sequence[Tensor]], readers: Sequence[MeanColor]) -> list[TeacherOutput]:
            self.num_passes += 1
            return super().forward(groups, readers)

    def targets(parts_at_once: int) -> tuple[list[Tensor], int]:
        views = ViewsRecipe(parts_at_once=parts_at_once, is_square=False)
        recipe = recipe_with(views, batch_size=None, token_budget=90, accumulation_steps=3)
        teachers = {"coarse": Counting(), "fine": TEACHERS["fine"]}
        source, tensors = OnlineTargets(recipe, PATCH, Images(), teachers, CPU), []
        for batch, example in source.examples(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 2)):
            tensors.append(example.targets["coarse"].summary)
            for target in example.targets.values():
                overlaps = [overlap for each in target.alignments for overlap in each.overlaps.values()]
                tensors += [*target.features, *chain.from_iterable((each.valid, each.tokens) for each in overlaps)]
            assert teachers["coarse"].num_passes <= math.ceil(3 / parts_at_once) * (batch.step + 1)
        return tensors, teachers["coarse"].num_passes

    (together, num_passes), (apart, num_apart) = targets(parts_at_once), targets(1)
    assert (num_passes, num_apart) == (passes, 6)
    assert all(torch.equal(*pair) for pair in zip(together, apart, strict=True))


def test_positions_beside_the_image_count_neither_in_losses_nor_in_statistics() -> None:
    """Crops of a white image that are larger than it differ only beside it."""

    class White(Images):
        def __getitem__(self, index: int) -> Tensor:
            return torch.full_like(self.images[index], 255)

    recipe = recipe_with(ViewsRecipe(crop_scale=(1.2, 1.5)), crop_scale=(1.5, 1.8))
    shapes = {name: SimpleNamespace(feature_dim=3, summary_dim=TEACHERS[name].summary_dim) for name in TEACHERS}
    statistics = TeacherStatistics(StandardizationRecipe(), shapes)
    compared = beside = 0
    for _, example in examples_of(recipe, 4, images=White()):
        student = MeanColor().extract_features(example.pixel_values[0]).features
        statistics.update(example.targets)
        for target in example.targets.values():
            maps = target.alignments[0].apply(student, target.features[0])
            inside = maps.valid[:, None].expand_as(maps.teacher)
            assert (torch.stack([maps.student[inside], maps.teacher[inside]]) > 0.95).all()
            compared += int(maps.valid.sum())
            beside += int((~target.shown[0]).sum())
    assert min(compared, beside) > 50
    statistics.end_step()
    for standardizer in statistics.standardizers().values():
        assert standardizer.total / standardizer.count == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("border", ["masked", "extended"])
def test_outermost_patches_beside_a_coarser_teacher(border: str) -> None:
    """Without shifts they are never compared if masked; extended, each is in every image."""
    recipe = recipe_with(ViewsRecipe(max_shift_patches=0), sizes_px=[64]).replace(loss=LossRecipe(border=border))
    for _, example in examples_of(recipe, 3, {"coarse": MeanColor(32), "fine": MeanColor(8)}):
        ((coarse,), (fine,)) = (target.alignments for target in example.targets.values())
        for alignment, is_compared in ((coarse, border == "extended"), (fine, True)):
            (own,) = alignment.overlaps.values()
            valid = own.valid if alignment is coarse else own.valid[:, 1:-1, 1:-1]
            assert valid[:, 0].any() == valid[:, :, -1].any() == is_compared
            assert valid.all() == is_compared


def test_jitter_is_for_the_student_only() -> None:
    plain = recipe_with(ViewsRecipe(max_shift_patches=0))
    jittered = recipe_with(ViewsRecipe(max_shift_patches=0, brightness=0.5, contrast=0.5))
    ((_, one),), ((_, two),) = (examples_of(recipe, 1) for recipe in (plain, jittered))
    assert torch.equal(one.targets["coarse"].features[0], two.targets["coarse"].features[0])
    assert not torch.equal(one.pixel_values[0], two.pixel_values[0])


@pytest.mark.usefixtures("far_shifts")
def test_moving_average_sees_another_crop_that_the_shift_explains() -> None:
    views = ViewsRecipe(crop_scale=(0.2, 0.4), brightness=0.2, contrast=0.2)
    recipe = recipe_with(views)
    check_the_average_view(OnlineTargets(recipe, PATCH, Images(), TEACHERS, CPU), recipe)


def test_student_images_need_no_teacher() -> None:
    class Silent(MeanColor):
        def forward(self, groups: Sequence[Sequence[Tensor]], readers: Sequence[MeanColor]) -> list[TeacherOutput]:
            raise AssertionError("a teacher was asked")

    recipe = recipe_with(ViewsRecipe(is_square=False, brightness=0.1), **PACKED)
    source = OnlineTargets(recipe, PATCH, Images(), {name: Silent() for name in TEACHERS}, CPU)
    found = source.student_images(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(0, 3))
    for own, (_, example) in zip(found, examples_of(recipe, 3), strict=True):
        assert all(torch.equal(*pair) for pair in zip(own, example.pixel_values, strict=True))


class Reading(Teacher):
    """One network, and two ways to read it: the colors of its patches, or how bright they are."""

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    read_options = frozenset({"is_gray"})

    def __init__(self, name: str, *, source: str | None = None, is_gray: bool = False) -> None:
        super().__init__(name, summary_dim=None, feature_dim=1 if is_gray else 3, patch_size=PATCH)
        self.is_gray, self.num_passes = is_gray, 0

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        return self.encode_for(pixel_values, [self])[0]

    def encode_for(self, pixel_values: Tensor, readers: Sequence[Teacher]) -> list[TeacherOutput]:
        self.num_passes += 1
        colors = nn.functional.avg_pool2d(pixel_values, PATCH)
        return [TeacherOutput(None, colors.mean(1, keepdim=True) if each.is_gray else colors) for each in readers]


@pytest.mark.usefixtures("far_shifts")
def test_teachers_of_one_network_share_one_pass_of_one_crop() -> None:
    recipe = small_recipe(
        *("color", "gray", "other"),
        data={"source": "s", "image_size_px": SIDE, "num_workers": 0},
        views={"max_shift_patches": 1, "crop_scale": (0.2, 0.4)},
        partitions=[{"sizes_px": [48], "batch_size": 4}, {"name": "some", "sizes_px": [48], "teachers": ["gray"]}],
    )
    entries = [TeacherRecipe(name=name, kind="k", options={"is_gray": name == "gray"}) for name in ("color", "gray")]
    color, gray, other = Reading("color"), Reading("gray", is_gray=True), Reading("other")
    share_network(gray, entries[1], [(color, entries[0])])
    teachers, are_equal = {"color": color, "gray": gray, "other": other}, []
    for batch, example in examples_of(recipe, 3, teachers):
        assert example.targets.keys() == set(batch.teachers)
        if batch.partition == "low":
            one, two, three = (example.targets[name] for name in teachers)
            assert torch.equal(two.features[0], one.features[0].mean(1, keepdim=True))
            assert two.alignments[0] is one.alignments[0]
            are_equal.append(torch.equal(*(shifts_of(each.alignments[0]) for each in (one, three))))
    assert not all(are_equal)  # another network sees a crop of its own
    assert (color.num_passes, gray.num_passes, other.num_passes) == (3, 3, 3)  # gray: of the partition "some"
    entries = TeacherOutputs(teachers, SIDE // PATCH, CPU)(Images().images)
    assert entries["gray.features"].shape == (NUM_IMAGES, SIDE // PATCH, SIDE // PATCH, 1)
    assert color.num_passes == other.num_passes > 3 == gray.num_passes
