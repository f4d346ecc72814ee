"""Start of a student from the model that `student.init_from` names: a RADIO folder, a ViT, or a library's weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from modeling_radio import RadioModel
from modeling_radio.core.hub import explain_failure
from modeling_radio.core.ids import LIBRARY_PREFIXES
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.student.warm_start.radio import WarmStart, open_source, warm_start
from modeling_radio.training.student.warm_start.vit import UnknownTrunkError, fit_vit, open_vit, vit_of
from modeling_radio.training.teachers.base import Teacher


def start_student(
    student: RadioModel, source: str, teachers: Mapping[str, Teacher], blocks: Sequence[int] | None = None
) -> WarmStart:
    """Copy the weights of a source into a student.

    Args:
        student: With fresh weights; changed in place.
        source: Name of one of the teachers, whose network is the source then; or Hub id or folder of a RADIO
            checkpoint, ours or NVIDIA's, or of a ViT of transformers; or "timm:NAME" or "transformers:NAME": a ViT, or
            the network of a student of this library.
        teachers: By name.
        blocks: Indices of the source's blocks that become the student's, in order; None for all.

    Raises:
        RecipeError: If the source cannot be opened, or its trunk differs.
    """
    try:
        if student.config.wrapped is not None and (source in teachers or source.startswith(LIBRARY_PREFIXES)):
            return start_network(student, source, teachers)
        if source in teachers:
            teacher = teachers[source]
            trunk = vit_of(_network_of(teacher), teacher.image_mean, teacher.image_std)
        else:
            trunk = open_vit(source)
    except UnknownTrunkError as error:
        raise RecipeError(
            f"`student.init_from` {source!r} is no network that this student can start from: {error}."
        ) from error
    if trunk is not None and student.config.num_mergings:
        raise RecipeError(
            f"`student.init_from` must be a RADIO checkpoint with `student.config.downscale_levels`, got {source!r}, a "
            "plain ViT. Start a student without mergings from it, and that with mergings from this student."
        )
    if trunk is not None:
        return fit_vit(student, trunk, source, blocks)
    return warm_start(student, open_source(source, student.config, blocks), source, blocks)


def _network_of(teacher: Teacher) -> nn.Module:
    network = dict(teacher.named_children()).get("network")
    if network is None:
        raise UnknownTrunkError(f"the teacher is a {type(teacher).__name__} without a network of its own")
    return network


@torch.no_grad()
def start_network(student: RadioModel, source: str, teachers: Mapping[str, Teacher]) -> WarmStart:
    """Copy weights into a library's network in a student; its pool and heads stay as they are.

    So do projections of its levels, which follow from images: see `PrincipalProjections`.

    Args:
        student: Changed in place.
        source: Name of a teacher that has such a network; "timm:NAME", with NAME as for `timm.create_model`, also
            "timm:local-dir:FOLDER"; or "transformers:NAME", with a Hub id or a folder.
        teachers: By name.

    Raises:
        RecipeError: If the student is no network of that library, the weights do not open, or are of another shape.
    """
    given = _network_weights(student, source, teachers)
    network = student.radio_model.model.network
    own = network.state_dict()
    others = [key for key in own if key not in given or given[key].shape != own[key].shape]
    if others:
        raise RecipeError(
            f"`student.init_from` {source!r} is another network than the student: {len(others)} of {len(own)} weights "
            f"are missing or have another shape, {others[0]!r} and such."
        )
    network.load_state_dict({key: given[key] for key in own})
    label = f"{source!r}, weights of a network of {(student.config.wrapped or {})['source']}"
    report = WarmStart(label, needs_projections=len(student.radio_model.model.projections) > 0)
    report.taken.append("the network")
    report.added.append("heads of all teachers")
    report.added.extend(["projections of its levels"] if report.needs_projections else [])
    left_out = [key for key in given if key not in own]
    report.left_out.extend([f"{len(left_out)} weights, {left_out[0]} and such"] if left_out else [])
    return report


def _network_weights(student: RadioModel, source: str, teachers: Mapping[str, Teacher]) -> Mapping[str, torch.Tensor]:
    if source in teachers:
        return _network_of(teachers[source]).state_dict()
    library, _, name = source.partition(":")
    wrapped = student.config.wrapped or {}
    if wrapped.get("source") != library:
        raise RecipeError(f"`student.init_from` {source!r} needs a `student.architecture` of {library}.")
    try:
        return _open(library, name, wrapped["arguments"]).state_dict()
    except Exception as error:  # a library may raise anything for a damaged or foreign checkpoint
        reason = explain_failure(error, name).rstrip(".")
        raise RecipeError(f"`student.init_from` {source!r} does not open: {reason}.") from error


def _open(library: str, name: str, arguments: dict[str, Any]) -> nn.Module:
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=True, num_classes=0, **arguments)
    from transformers import AutoModel

    return AutoModel.from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
