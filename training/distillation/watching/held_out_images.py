"""The held-out images of a run's data, which its pictures show and its measurements are made on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.data.sources import DEMO_SOURCES, is_image_folder
from training.recipe import Recipe, RecipeError
from training.views.images import build_images


def held_out_source(recipe: Recipe) -> str | None:
    """Return where a recipe's held-out images come from, None for data that has none.

    A folder that is streamed has none: all of its images are trained on.

    Raises:
        RecipeError: If the recipe names something else than the demo's images or a folder, or one that is streamed.
    """
    data, given = recipe.data, recipe.logging.picture_source
    source = data.source if given is None else given
    if data.streaming and any(_is_within(source, each.source) for each in (data, *data.mixed_in)):
        if given is None:
            return None
        raise RecipeError(
            f"`logging.picture_source` must be images that are not trained on, got {given!r}, all of which are "
            "streamed. Give another folder."
        )
    if source in DEMO_SOURCES or is_image_folder(source):
        return source
    if given is not None:
        raise RecipeError(
            f"`logging.picture_source` must be one of {sorted(DEMO_SOURCES)} or a folder of images, got {source!r}."
        )
    return None


def _is_within(source: str, streamed: str) -> bool:
    inner, outer = (Path(each).expanduser().resolve() for each in (source, streamed))
    return source == streamed or (outer.is_dir() and inner.is_relative_to(outer))


def describe_lack(recipe: Recipe) -> str:
    """Return a line for the log of a run whose pictures or measurements have no images; empty for others."""
    pictures, metrics = recipe.logging.picture_every_steps, recipe.logging.metrics_every_steps
    is_asked_for = metrics is not None or (pictures is not None and pictures <= recipe.schedule.num_steps)
    if not is_asked_for or held_out_source(recipe) is not None:
        return ""
    return (
        f"No held-out images in `data.source` {recipe.data.source!r}, so no pictures and no measurements: set "
        "`logging.picture_source` to a folder of images."
    )


def held_out_images(recipe: Recipe, size: int, max_images: int, switch: str) -> Tensor | None:
    """Return held-out images of a recipe, spread evenly over them, or None if its data has none.

    Args:
        recipe: The recipe.
        size: Their side in pixels.
        max_images: How many, if there are that many.
        switch: The setting that does without them, for example "logging.picture_every_steps".

    Returns:
        uint8 RGB, `(num_images, 3, size, size)`.

    Raises:
        RecipeError: If `logging.picture_source` is no source, or one without images.
    """
    source = held_out_source(recipe)
    if source is None:
        return None
    try:
        images = build_images(source, size=size, split="held_out")
    except ValueError as error:
        if recipe.logging.picture_source is None:  # a folder of one image
            return None
        raise RecipeError(f"`logging.picture_source`: {error} Give another folder, or `{switch}=null`.") from error
    number = min(max_images, len(images))
    return torch.stack([images[place * len(images) // number] for place in range(number)])
