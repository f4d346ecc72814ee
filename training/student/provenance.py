"""Provenance of numbers and models: teachers and images, for results files and model cards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from modeling_radio import RadioAdaptorConfig, RadioConfig
from modeling_radio.core.ids import LIBRARY_PREFIXES, name_of_folder
from modeling_radio.data.made_images import open_made_images
from modeling_radio.data.settings import DataRecipe, is_made
from modeling_radio.data.sources import public_name
from modeling_radio.metrics.results import Source
from modeling_radio.model_cards.build import license_of
from modeling_radio.model_cards.licenses import DOUBT, nvidia_license
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.model_cards.metadata import ABOUT_TRAINING, HUB_ID
from modeling_radio.training.recipes.recipe import Recipe, TeacherRecipe
from modeling_radio.training.teachers.published.catalog import family_of
from modeling_radio.training.teachers.registry import package_of


def teacher_sources(config: RadioConfig, recipe: Recipe) -> list[Source]:
    """Describe the recipe's teachers that a model has adaptors for."""
    names = [adaptor.name for adaptor in config.adaptor_configs]
    return [teacher_source(entry, config.adaptor(entry.name)) for entry in recipe.teachers if entry.name in names]


def teacher_source(entry: TeacherRecipe, adaptor: RadioAdaptorConfig) -> Source:
    """Describe a teacher: the outputs that its adaptor learned, its origin and license."""
    outputs = {"summary": adaptor.summary_dim, "features": adaptor.feature_dim}
    role = ", ".join(f"{name} ({width})" for name, width in outputs.items() if width is not None)
    package = package_of(entry)
    if package is not None:
        what = package.purpose.rpartition(": ")[2]
        return Source(entry.name, role, package.license, package.origin, what)
    if entry.source is None:
        return Source(entry.name, role, "see its origin", f"kind {entry.kind}")
    return _published(entry.name, role, entry.source)


def _published(name: str, role: str, origin: str) -> Source:
    """Describe a model from a folder or the Hub; a folder by its name, since its path means nothing elsewhere."""
    if not _is_folder(origin):
        return Source(name, role, _license_of_published(origin), origin, hub_id=origin if "/" in origin else None)
    try:
        license = license_of(Path(origin).expanduser())
    except ValueError:  # a card in another format
        license = None
    named = "see its origin" if license is None else license.name or license.id
    return Source(name, role, named, f"folder {_model_name(origin)}")


def _is_folder(origin: str) -> bool:
    """Return whether a model was opened from a folder, even if the folder is gone."""
    folder = Path(origin).expanduser()
    is_named = origin.startswith(LIBRARY_PREFIXES) or HUB_ID.fullmatch(origin) is not None
    return folder.is_dir() or folder.is_absolute() or not is_named


def _model_name(origin: str) -> str:
    """Return an id on the Hub, or the name of a folder."""
    return name_of_folder(origin) if _is_folder(origin) else origin


def _license_of_published(origin: str) -> str:
    """Return the license of a Hub id or of a name of timm, with the doubts about it."""
    family = family_of(origin.removeprefix("timm:"))
    if family is not None:
        return f"{family.license}; {DOUBT}{family.doubt}" if family.doubt else family.license
    owner, _, model = origin.partition("/")
    nvidias = nvidia_license(model) if owner == "nvidia" else None
    return "see its origin" if nvidias is None else str(nvidias.name)


def lineage_of(config: RadioConfig, recipe: Recipe) -> Lineage:
    """Return the lineage of a student of this recipe: its teachers and the teachers of these, a start, images.

    Raises:
        PackageError: If the images are the demo's, and cannot be fetched.
    """
    lineage = Lineage(teacher_sources(config, recipe), [], image_sources(recipe.data))
    for entry in recipe.teachers:
        if entry.source is not None:
            theirs = Lineage.find(Path(entry.source).expanduser()).followed_through(entry.name)
            lineage.teachers.extend(theirs.teachers)
            lineage.images.extend(theirs.images)
    start = recipe.student.init_from
    if start is not None:
        of_teacher = [replace(source, role="weights") for source in lineage.teachers if source.name == start]
        begun = started_from(start, of_teacher[0] if of_teacher else None)
        lineage.weights.extend(begun.weights)
        lineage.images.extend(begun.images)
    return lineage


def started_from(checkpoint: str, weights: Source | None = None, folder: Path | None = None) -> Lineage:
    """Return a checkpoint as initial weights, followed by all that it was made from itself.

    Args:
        checkpoint: Folder or Hub id.
        weights: Its description if it is known; the others are called by its name.
        folder: Where its files are, for a Hub id.
    """
    weights = weights or _published(_model_name(checkpoint), "weights", checkpoint)
    theirs = Lineage.find(folder or Path(checkpoint).expanduser()).followed_through(weights.name)
    return Lineage([], [weights, *theirs.teachers], theirs.images)


def image_sources(data: DataRecipe) -> list[Source]:
    """Describe a recipe's training images: origins of those that are made, names of files, or data sets of the Hub."""
    found = []
    for entry in data.sources():
        if is_made(entry.source):
            found += open_made_images(entry.source).sources(entry.source, ABOUT_TRAINING)
            continue
        name, origin, hub_id = public_name(entry.source)
        split = f"split {entry.split}" if entry.split else ""
        share = f"{100 * entry.weight:.3g}% of the images" if data.mixed_in else ""
        size = ", ".join(filter(None, [split, share]))
        found.append(Source(name, f"{ABOUT_TRAINING}: images", "see its origin", origin, size, hub_id))
    return found
