"""What a feature cache was made from, so that one made from anything else is never read.

No place is part of it: images and weights are known by their content, wherever they lie, so that a cache can be moved,
or made on one machine and read on others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from foundation.settings import differences, hash_of, with_defaults
from training.data.image_table import Images
from training.recipe import DataRecipe, Recipe, RecipeError, TeacherRecipe, ViewsRecipe
from training.recipe_sections.networks import RunOptions
from training.targets.cache.formats import FORMATS, FeatureFormat


DEFAULT_ROOT = Path("runs") / "cache"
DESCRIPTION = "cache.json"

_PLACES_OF_TEACHERS = ("source", "upsampler")
_PLACES_OF_DATA = ("source", "split", "column", "mixed_in")
_TEACHER_FIELDS = ("name", "kind", "options", *(key for key in RunOptions.model_fields if key != "upsampler"))
_DATA_FIELDS = ("image_size_px", "seed", "jpeg_drafts")


@dataclass(frozen=True)
class CacheContents:
    """What a cache is made from: any change makes it stale.

    Attributes:
        settings: What the recipe says of views, answers and how they are kept, as JSON values.
        state: What the recipe only points at: the images and the teachers' weights as they are now.
        places: Where it points to, which only decides the default folder.
    """

    settings: dict[str, Any]
    state: dict[str, Any]
    places: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, patch_size: int, images: Images, teachers: Mapping[str, nn.Module]) -> CacheContents:
        """Return what decides the views and the teachers' answers."""
        resolved = recipe.to_dict()
        return cls(
            {
                "teachers": [{key: entry[key] for key in _TEACHER_FIELDS} for entry in resolved["teachers"]],
                "data": {key: resolved["data"][key] for key in _DATA_FIELDS},
                "views": {"cache_format": recipe.views.cache_format},
                "num_images": len(images),
                "cells_per_side": resolved["data"]["image_size_px"] // patch_size,
            },
            {
                "images": images.fingerprint(),
                "weights": {name: weights_fingerprint(teacher) for name, teacher in teachers.items()},
            },
            {
                "teachers": [{key: entry[key] for key in _PLACES_OF_TEACHERS} for entry in resolved["teachers"]],
                "data": {key: resolved["data"][key] for key in _PLACES_OF_DATA},
            },
        )

    @property
    def teacher_names(self) -> list[str]:
        """Return the names of the teachers."""
        return [entry["name"] for entry in self.settings["teachers"]]

    @property
    def num_images(self) -> int:
        """Return how many images the cache has."""
        return self.settings["num_images"]

    @property
    def cells_per_side(self) -> int:
        """Return the student's patches along a view's side."""
        return self.settings["cells_per_side"]

    @property
    def views(self) -> ViewsRecipe:
        """Return how features are kept."""
        return ViewsRecipe(**self.settings["views"])

    @property
    def format(self) -> FeatureFormat:
        """Return what keeps features."""
        return FORMATS[self.views.cache_format]

    def to_dict(self) -> dict[str, Any]:
        """Return what the cache says of itself, as JSON values."""
        return {**self.settings, **self.state}

    def default_folder(self) -> Path:
        """Return a folder that no other settings share, nor images or teachers of another place.

        Settings that have their defaults do not count: one that is new in a later version moves no cache. Nor does the
        state, so that a cache whose images were changed is found, and refused.
        """
        teachers = [_without_defaults(entry, TeacherRecipe) for entry in self.settings["teachers"]]
        data = _without_defaults(self.settings["data"], DataRecipe)
        views = _without_defaults(self.settings["views"], ViewsRecipe)
        decisive = {**self.settings, "teachers": teachers, "data": data, "views": views}
        return DEFAULT_ROOT / hash_of({"settings": decisive, "places": self.places})[:16]


def check_contents(folder: Path, contents: CacheContents) -> None:
    """Raise a RecipeError if a cache was made from something else than `contents`.

    Settings that it says nothing of came later, and had their defaults when it was made.
    """
    path = folder / DESCRIPTION
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{str(folder)!r} is no feature cache: {path.name} is missing or broken. Delete the folder, or give "
            "another `views.cache_dir`."
        ) from error
    changed = differences(_filled(saved), _filled(contents.to_dict()))
    if changed:
        raise RecipeError(
            f"Feature cache {str(folder)!r} is stale ({'; '.join(changed)}). Delete it, or give another "
            "`views.cache_dir`."
        )


def weights_fingerprint(network: nn.Module) -> str:
    """Return how many numbers a network has, and a hash of their names and values."""
    count, state = 0, hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor):
            count += tensor.numel()
            state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{count} numbers, state {state.hexdigest()[:16]}"


def _filled(contents: Any) -> Any:
    """Return contents with the defaults of settings that they say nothing of."""
    if not isinstance(contents, Mapping):
        return contents
    filled = with_defaults(Recipe, contents)
    return {key: filled[key] for key in ("views", *contents)}


def _without_defaults(settings: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    defaults = with_defaults(model, {})
    return {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}
