"""Teachers of a recipe: their kinds, building, sharing of networks, and devices."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from modeling_radio.checks_radio import did_you_mean
from modeling_radio.core.ids import standard_id
from modeling_radio.core.imports import find_object
from modeling_radio.core.packages import Package, PackageUnavailableError, fetch_package
from modeling_radio.core.ranks import rank_and_count
from modeling_radio.training.recipes.recipe import Recipe, TeacherRecipe
from modeling_radio.training.recipes.sections import RunOptions
from modeling_radio.training.teachers.base import DEFAULT_GRID_STRIDE, Teacher
from modeling_radio.training.teachers.featsharp import UpsampledTeacher, check_upsampler, load_upsampler
from modeling_radio.training.teachers.outputs import teacher_error
from modeling_radio.training.teachers.published.timm_networks import TimmTeacher
from modeling_radio.training.teachers.published.transformers_networks import (
    ClipTeacher,
    DinoTeacher,
    Sam2Teacher,
    Sam3Teacher,
    SamTeacher,
    SiglipTeacher,
    Tipsv2Teacher,
)
from modeling_radio.training.teachers.radio import RadioTeacher


logger = logging.getLogger(__name__)

TEACHER_KINDS: dict[str, type[Teacher] | str] = {
    "efficientnet-lite0": "modeling_radio.demo.teachers:EfficientNetLiteTeacher",
    "dinov2-s-saliency": "modeling_radio.demo.teachers:Dinov2SaliencyTeacher",
    "nanodet-g": "modeling_radio.demo.teachers:NanoDetTeacher",
    "clip": ClipTeacher,
    "siglip": SiglipTeacher,
    "siglip2": SiglipTeacher,
    "dinov3": DinoTeacher,
    "dinov2": DinoTeacher,
    "sam": SamTeacher,
    "sam3": Sam3Teacher,
    "sam2": Sam2Teacher,
    "edgetam": Sam2Teacher,
    "tipsv2": Tipsv2Teacher,
    "timm": TimmTeacher,
    "radio": RadioTeacher,
}
"""Classes, or their import paths, by kind: the demo's teachers are found as a user's own are."""


def build_teacher(
    name: str,
    *,
    kind: str,
    source: str | None = None,
    run: RunOptions | None = None,
    grid_stride: int = DEFAULT_GRID_STRIDE,
    **options: Any,
) -> Teacher:
    """Build a frozen teacher.

    Args:
        name: Name of the teacher: the adaptor's name in the config, the checkpoint and the logs.
        kind: One of `TEACHER_KINDS`, or the import path of a subclass of `Teacher`, "my_package.my_module:MyTeacher".
        source: Hub id or local folder; None for the kinds that ship inside packages.
        run: The recipe's options of running; None for the kind's defaults.
        grid_stride: Pixels of the given image that make one patch of the output: the student's patch size.
        options: The kind's own options, the arguments of its class.

    Raises:
        ValueError: If the kind or an option is unknown, an option is out of range, or the source is not that
            model.
        PackageError: If the package with the weights cannot be fetched.
    """
    teacher_class: Callable[..., Teacher] = find_class(name, kind)
    parameters = inspect.signature(teacher_class).parameters
    if "source" not in parameters:
        raise teacher_error(name, f"the constructor of `kind` {kind!r} must take `source`.")
    known = parameters.keys() - {"name", "source"}
    for option in options:
        if option not in known:
            hint = f"{did_you_mean(option, known)} Options: {sorted(known)}."
            raise teacher_error(name, f"`kind` {kind!r} has no option {option!r}.{hint}")
    if source is None and parameters["source"].default is inspect.Parameter.empty:
        raise teacher_error(name, f"`kind` {kind!r} needs a `source`: a Hub id or a local folder.")
    source = None if source is None else standard_id(source)
    teacher = teacher_class(name, source=source, **options)
    teacher.options = options
    teacher.set_run_mode(run, grid_stride)
    if run is not None and run.upsampler is not None:
        try:
            upsampler = load_upsampler(run.upsampler)
            check_upsampler(upsampler.config, upsampled_teacher(teacher, kind, source, options), run.upsampler)
        except ValueError as error:
            raise teacher_error(name, str(error)) from error
        teacher.use_upsampler(upsampler)
    return teacher


def teacher_of_recipe(entry: TeacherRecipe, grid_stride: int = DEFAULT_GRID_STRIDE) -> Teacher:
    """Build the teacher that a recipe describes, on the CPU; see `build_teacher` for errors."""
    return build_teacher(
        entry.name,
        kind=entry.kind,
        source=entry.source,
        run=entry.run_options(),
        grid_stride=grid_stride,
        **entry.options,
    )


def can_be_random(entry: TeacherRecipe) -> bool:
    """Return whether the teacher of a recipe has the option `weights`, with which it is built without a download."""
    return "weights" in inspect.signature(find_class(entry.name, entry.kind)).parameters


def share_network(teacher: Teacher, entry: TeacherRecipe, others: Iterable[tuple[Teacher, TeacherRecipe]]) -> None:
    """Let a teacher use the network of the first other one that differs from it only in the outputs that it reads.

    Teachers with a FeatSharp upsampler, which is trained for one teacher's features, do not share.
    """
    own = _network_of(teacher, entry)
    for other, other_entry in others:
        if own is not None and own == _network_of(other, other_entry):
            teacher.share_network(other)
            return


def _network_of(teacher: Teacher, entry: TeacherRecipe) -> tuple[object, ...] | None:
    if teacher.read_options is None or teacher.upsampler is not None:
        return None
    options = {key: value for key, value in entry.options.items() if key not in teacher.read_options}
    return entry.kind, entry.source, options, entry.run_options(), entry.device, entry.shard


def check_devices(entries: Sequence[TeacherRecipe]) -> None:
    """Refuse the number of a GPU if several ranks share a machine, or may: all of them would use that GPU.

    Raises:
        ValueError: If a teacher has one; on each of the ranks.
    """
    count = os.environ.get("LOCAL_WORLD_SIZE")  # PyTorch's launchers set it, but not srun and mpirun
    num_ranks = rank_and_count()[1] if count is None else int(count)
    for entry in entries:
        if num_ranks > 1 and entry.device is not None and re.fullmatch(r"(?!cpu)\w+:\d+", entry.device):
            share, remedy = ("may share", " and set LOCAL_WORLD_SIZE=1") if count is None else ("share", "")
            raise teacher_error(
                entry.name,
                f"`device` must be without a number where {num_ranks} ranks {share} a machine, got {entry.device!r}, "
                f"on which each would put a copy. Leave it out, or start a single process on the machine{remedy}.",
            )


def place_teacher(teacher: Teacher, entry: TeacherRecipe, student_device: torch.device) -> Teacher:
    """Move a teacher to its recipe's device.

    Raises:
        ValueError: If there is no such device.
    """
    device = student_device if entry.device is None else entry.device
    try:
        teacher.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter if it was built without CUDA
        reason = str(error).strip().splitlines()[0]
        raise teacher_error(entry.name, f"`device` {str(device)!r} cannot be used: {reason.rstrip('.')}.") from error
    return teacher


def reachable_teachers(recipe: Recipe) -> list[TeacherRecipe]:
    """Return the recipe's teachers, without those that are optional and cannot be fetched, which the log says.

    Raises:
        PackageUnavailableError: If the recipe has no other teacher.
        PackageError: If the package of an optional teacher is damaged, or the disk is too full for it.
    """
    missing: dict[str, PackageUnavailableError] = {}
    for entry in recipe.teachers:
        package = package_of(entry)
        if package is not None and find_class(entry.name, entry.kind).is_optional:
            try:
                fetch_package(package)
            except PackageUnavailableError as error:
                missing[entry.name] = error
    reachable = [entry for entry in recipe.teachers if entry.name not in missing]
    for name, error in missing.items():
        if not reachable:
            raise error
        others = " and ".join(entry.name for entry in reachable)
        logger.warning("going on with %s, without %s: %s", others, name, error)
    return reachable


def build_teachers(entries: Sequence[TeacherRecipe], grid_stride: int) -> dict[str, Teacher]:
    """Return teachers by name, downloaded if necessary; see `build_teacher` for errors."""
    return {entry.name: teacher_of_recipe(entry, grid_stride) for entry in entries}


def upsampled_teacher(teacher: Teacher, kind: str, source: str | None, options: Mapping[str, Any]) -> UpsampledTeacher:
    """Return the teacher that an upsampler must have been trained for; its input size must be fixed."""
    size = teacher.run.input_size_px
    assert size is not None
    return UpsampledTeacher(kind, source, dict(options), teacher.feature_dim, size, size // teacher.patch_size)


def package_of(entry: TeacherRecipe) -> Package | None:
    """Return the package that the weights of a recipe's teacher come in; None if they come from elsewhere."""
    return find_class(entry.name, entry.kind).package() if entry.source is None else None


def find_class(name: str, kind: str) -> type[Teacher]:
    """Return the class of a kind: a registered one, or the one at an import path "module:Class".

    Args:
        name: Name of the teacher, for messages.
        kind: See `build_teacher`.

    Raises:
        ValueError: If the kind is unknown, cannot be imported, or is no class of teachers.
    """
    teacher_class = find_object(kind, TEACHER_KINDS, "kind", error=functools.partial(teacher_error, name))
    if not (isinstance(teacher_class, type) and issubclass(teacher_class, Teacher)):
        raise teacher_error(name, f"`kind` {kind!r} is no subclass of modeling_radio.training.teachers.base.Teacher.")
    return teacher_class
