"""One run of `training.train_upsampler`: the teacher of a recipe, its images, training, the folder, the measurement."""

from __future__ import annotations

import json

import torch

from foundation.errors import check_choice
from foundation.files import check_output, write_text
from training.data.image_table import Images
from training.recipe import Recipe, RecipeError, TeacherRecipe
from training.targets.cache.forecast import size_words
from training.teachers.registry import place_teacher, teacher_of_recipe, upsampled_teacher
from training.teachers.run_modes.featsharp import FeatSharp, save_upsampler
from training.upsampling.answers import Answers, open_images
from training.upsampling.measurement import draw, measure, summarize, table_of
from training.upsampling.settings import UpsamplerSettings
from training.upsampling.trainer import STATE_FILE, UpsamplerTrainer


def train_upsampler(settings: UpsamplerSettings, recipe: Recipe) -> str:
    """Train, save and measure an upsampler; return what to print.

    Raises:
        ValueError: If the recipe has no such teacher, or the output exists.
        Interrupted: If the process was asked to stop.
    """
    folder = settings.folder()
    state = folder / STATE_FILE  # as long as it is there, the run has not ended
    check_output(folder / "upsampler", overwrite=settings.overwrite or state.exists())
    entry = _entry(recipe, settings.teacher)
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    teacher = place_teacher(teacher_of_recipe(entry), entry, device)
    size = teacher.run.input_size_px
    assert size is not None
    images = open_images(recipe.data, settings.factor * size, settings.num_images, "train")
    memory = settings.memory_gb
    answers = Answers(
        teacher, images, settings.factor, recipe.seed, largest_view=settings.largest_view, memory_gb=memory
    )
    form = upsampled_teacher(teacher, entry.kind, entry.source, entry.options)
    trainer = UpsamplerTrainer(settings, form, answers, recipe.data)
    print(_forecast(settings, answers, trainer.num_images), flush=True)
    trainer.run(folder)
    save_upsampler(trainer.upsampler, folder / "upsampler")
    place = f"teachers.{entry.name}"
    said = f"Use it: {place}.run_mode=fixed {place}.upsample=featsharp {place}.upsampler={folder / 'upsampler'}"
    held_out = _held_out_images(settings, recipe, settings.factor * size)
    if held_out is not None:
        measured = Answers(teacher, held_out, settings.factor, recipe.seed, memory_gb=memory)
        said = f"{_measure(settings, trainer.upsampler, measured)}\n\n{said}"
    state.unlink(missing_ok=True)
    return said


def _entry(recipe: Recipe, name: str) -> TeacherRecipe:
    """Return a teacher of the recipe as it answers at its one size, without an upsampler."""
    entries = {entry.name: entry for entry in recipe.teachers}
    check_choice("teacher", name, entries, error=RecipeError)
    return entries[name].replace(run_mode="fixed", upsample="bilinear", upsampler=None)


def _forecast(settings: UpsamplerSettings, answers: Answers, num_images: int) -> str:
    """Return a line that says how much memory the answers take, and what happens where that is too much."""
    needed = answers.num_bytes(num_images, settings.num_views)
    said = f"The answers of {settings.teacher!r} to {num_images:,} images take {size_words(needed)}"
    share = 1e9 * settings.memory_gb / needed
    if share >= 1:
        return f"{said} of memory."
    return (
        f"{said}: `memory_gb`, {settings.memory_gb:g}, keeps {share:.0%} of them, and the others are computed at each "
        "use. Raise it where there is more memory, or lower `num_images` or `num_views`."
    )


def _held_out_images(settings: UpsamplerSettings, recipe: Recipe, size: int) -> Images | None:
    if settings.measured_images == 0:
        return None
    try:
        return open_images(recipe.data, size, settings.measured_images, "held_out")
    except ValueError as error:  # data that holds nothing out
        print(f"`measured_images` are not measured: {error}", flush=True)
        return None


def _measure(settings: UpsamplerSettings, upsampler: FeatSharp, answers: Answers) -> str:
    folder = settings.folder()
    upsampler.eval()
    found = measure(upsampler, answers, settings.measured_images, settings.num_views)
    summary = summarize(found)
    count = len(found["FeatSharp"])
    content = {"settings": settings.to_dict(), "num_images": count, "summary": summary, "images": found}
    write_text(folder / "measurements.json", json.dumps(content, indent=2) + "\n")
    sizes = f"{settings.teacher} at {answers.size} px, {settings.factor} times as fine"
    caption = f"{sizes}; principal components of the map of tiles as colors"
    draw(upsampler, answers, settings.pictured_images, folder / "features.png", caption)
    return table_of(summary, count)
