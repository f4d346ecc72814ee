"""Photographs through a checkpoint, on one page: teachers, adaptors, backbone, sizes, windows, words and tasks."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from transformers.utils import logging as transformers_logging

from foundation.command_line import Command
from modeling_radio.zero_shot_radio import DenseSource
from training.demo_kit.assets import load_demo_assets
from training.demo_kit.republishing import republishable_photographs
from training.evaluation.data.demo import load_photographs
from training.evaluation.models.base import FeatureModel
from training.evaluation.models.radio import RadioFeatures, open_radio
from training.evaluation.report.build import check_page
from training.evaluation.report.gallery.photographs import PHOTOGRAPH_PX, Gallery
from training.evaluation.report.gallery.sections import gallery_sections, write_gallery
from training.evaluation.report.gallery.tuned import open_task_models, task_section
from training.evaluation.run import build_references
from training.recipe import Recipe, RecipeCommand
from training.student.build import build_student
from training.teachers.registry import build_teachers, reachable_teachers


PAGE = "index.html"
COMPARED = ("hidden_size", "num_hidden_layers", "patch_size")
"""What an untrained student must share with a checkpoint to be shown beside it."""


class GallerySettings(RecipeCommand):
    """What is shown.

    Attributes:
        checkpoint: Folder of a RADIO model.
        output: Folder of the page.
        alone: Leaves out the recipe's teachers, which else stand beside their adaptors, and its untrained student.
        shifts: Cells for each patch and direction; divides the patch.
        size: Side of the images in pixels; null takes the checkpoint's own.
        tasks: Folders of models tuned on labels, for classes of images or of pixels or for depth.
        words: Texts that patches are compared with, of a checkpoint with a text tower.
        dense_source: Which of its patches: through the head of the summary, or the teacher's features.
    """

    checkpoint: Path
    output: Path = Path("runs/gallery")
    alone: bool = False
    shifts: int = Field(4, gt=0)
    size: int | None = Field(None, gt=0)
    tasks: list[Path] = []
    words: list[str] = []
    dense_source: DenseSource = "summary_head"


COMMAND = Command("training.showcase.gallery", __doc__, GallerySettings, positionals=("checkpoint",), changes=Recipe)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_write, arguments)


def _write(settings: GallerySettings) -> None:
    transformers_logging.disable_progress_bar()  # models load in no time
    page = settings.output / PAGE
    check_page(page)
    recipe = settings.load_recipe()
    model = open_radio(settings.checkpoint, name="backbone", size_px=settings.size)
    tasks = open_task_models(settings.tasks)
    teachers: dict[str, FeatureModel] = {}
    untrained: dict[str, FeatureModel] = {}
    if not settings.alone:
        recipe = recipe.replace(teachers=reachable_teachers(recipe))
        teachers, untrained = dict(build_references(model, recipe)), _untrained(model, recipe)
    chosen = republishable_photographs(load_demo_assets())
    photographs = load_photographs([each.photograph for each in chosen], PHOTOGRAPH_PX)
    names = [each.credit for each in chosen]
    gallery = Gallery(model, photographs, names, settings.shifts, teachers, untrained)
    sections = list(gallery_sections(gallery, settings.words, settings.dense_source))
    write_gallery(
        page,
        [*sections, *(task_section(task, gallery.shown(), names) for task in tasks)],
        title=f"{len(chosen)} photographs through {settings.checkpoint}",
        text=f"Images of {model.size_px} px, patches of {model.patch_size}.",
        credits=names,
    )
    print(f"Open {page}: {len(chosen)} photographs.")


def _untrained(model: RadioFeatures, recipe: Recipe) -> dict[str, FeatureModel]:
    """Return the student that the recipe starts from, if the checkpoint can have begun as it."""
    student = build_student(recipe, build_teachers(recipe.teachers, model.patch_size)).eval()
    if any(getattr(student.config, name) != getattr(model.model.config, name) for name in COMPARED):
        return {}
    return {"untrained backbone": RadioFeatures(student, name="untrained backbone", size_px=model.size_px)}


if __name__ == "__main__":
    sys.exit(main())
