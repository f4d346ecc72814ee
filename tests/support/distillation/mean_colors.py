"""A teacher that can be checked by eye (mean colors of cells), and the images, recipes and caches it is tested on."""

from collections.abc import Sequence
from pathlib import Path

import torch
from small_recipes import small_recipe
from torch import Tensor, nn

from modeling_radio.data import image_table
from modeling_radio.training.distillation.step import mesa_loss
from modeling_radio.training.losses.alignment import Alignment
from modeling_radio.training.recipes.recipe import MesaRecipe, Recipe, ViewsRecipe
from modeling_radio.training.targets.examples import TargetSource
from modeling_radio.training.targets.feature_cache import (
    CacheContents,
    FeatureCache,
    TeacherOutputs,
    write_feature_cache,
)
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.training.views.plan import BatchPlan
from modeling_radio.training.views.shapes import Grid


PATCH = 16
SIDE = 80
NUM_IMAGES = 6
CPU = torch.device("cpu")


class MeanColor(nn.Module):
    """A teacher whose features are the mean colors of cells: equivariant to whole-cell shifts and mirroring."""

    can_share_cores, equal_calls, feature_dim = True, None, 3

    def __init__(self, patch_px: int = PATCH, has_summary: bool = True) -> None:
        super().__init__()
        self.patch_px, self.summary_dim, self.network_of = patch_px, 3 if has_summary else None, f"of {id(self)}"

    def input_sizes(self, rows: int, cols: int) -> tuple[tuple[int, int], ...]:
        return ((rows * PATCH, cols * PATCH),)

    def output_sides(self, rows: int, cols: int) -> tuple[int, int]:
        return rows * PATCH // self.patch_px, cols * PATCH // self.patch_px

    def forward(self, groups: Sequence[Sequence[Tensor]], readers: Sequence["MeanColor"]) -> list[TeacherOutput]:
        return [self.extract_features(*group) for group in groups]

    def extract_features_for(self, pixel_values: Tensor, readers: Sequence["MeanColor"]) -> list[TeacherOutput]:
        return [self.extract_features(pixel_values)]

    def extract_features(self, pixel_values: Tensor) -> TeacherOutput:
        features = nn.functional.avg_pool2d(pixel_values, self.patch_px)
        return TeacherOutput(None if self.summary_dim is None else features.mean((2, 3)), features)


class Images(image_table.Images):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (NUM_IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def fingerprint(self) -> str:
        return "noise"


def recipe_with(views: ViewsRecipe, **partition) -> Recipe:
    data = {"source": "s", "image_size_px": SIDE, "num_workers": 0}
    partitions = [{"sizes_px": [48, 64], "batch_size": 4, **partition}]
    return small_recipe("coarse", "fine", data=data, views=views, partitions=partitions)


TEACHERS = {"coarse": MeanColor(), "fine": MeanColor(8, has_summary=False)}


def contents_of(recipe: Recipe) -> CacheContents:
    return CacheContents.of(recipe, PATCH, Images(), TEACHERS)


def open_cache(recipe: Recipe, folder: Path) -> FeatureCache:
    contents = contents_of(recipe)
    answers = TeacherOutputs(TEACHERS, SIDE // PATCH, CPU)
    write_feature_cache(folder, contents, Images(), answers)
    return FeatureCache(folder, contents)


def shifts_of(alignment: Alignment, patches: Grid | None = None) -> Tensor:
    """Return `(images, 2)` patches from the student's crops to others, as the copied tokens tell.

    Args:
        alignment: Its first map of the student counts.
        patches: The student's; None where it has one for each position.
    """
    overlap = next(iter(alignment.overlaps.values()))
    images, rows, cols = overlap.valid.shape
    tokens = overlap.tokens.view(images, rows, cols) - rows * cols * torch.arange(images)[:, None, None]
    moves = torch.stack([torch.arange(rows)[:, None] - tokens // cols, torch.arange(cols) - tokens % cols], dim=1)
    return (moves.amax((2, 3)) + moves.amin((2, 3))) // (1 if patches is None else rows // patches.rows)


def mesa_of(source: TargetSource, recipe: Recipe) -> list[float]:
    """Run the mean colors as student and as average alike over the steps of a plan."""
    plan, network = BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH), MeanColor()
    losses = []
    for _, example in source.examples(lambda: plan.steps(0, 6)):
        if example.ema_pixels is None:
            continue
        student, average = (
            [network.extract_features(pixels).features for pixels in groups]
            for groups in (example.pixel_values, example.ema_pixels)
        )
        losses.append(mesa_loss(student, average, example.ema_alignments).item())
    return losses


def check_the_average_view(source: TargetSource, recipe: Recipe) -> None:
    """The moving average sees another crop than the student, and the shift says where it lies."""
    recipe.mesa = MesaRecipe(weight=1.0, start_step=2)
    losses = mesa_of(source, recipe)
    assert len(losses) == 4  # none before its start
    assert max(losses) < 1e-4
    examples = [
        example for _, example in source.examples(lambda: BatchPlan(recipe, NUM_IMAGES, patch_size=PATCH).steps(2, 6))
    ]
    shifts = torch.cat([shifts_of(each) for example in examples for each in example.ema_alignments])
    assert shifts.any(0).all()
    assert shifts.any(1).all()  # in no image the student's own crop
