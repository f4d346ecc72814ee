"""Start of a student from the model that `student.init_from` names."""

from collections.abc import Mapping, Sequence

from modeling_radio import RadioModel
from modeling_radio.training.recipe import RecipeError
from modeling_radio.training.student.warm_start.library import LIBRARY_SOURCES, start_network
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
            checkpoint, ours or NVIDIA's, or of a ViT of transformers or timm; or for a student that is a network of one
            of these "timm:NAME" or "transformers:NAME".
        teachers: By name.
        blocks: Indices of the source's blocks that become the student's, in order; None for all.

    Raises:
        RecipeError: If the source cannot be opened, or its trunk differs.
    """
    if source.startswith(LIBRARY_SOURCES):
        return start_network(student, source)
    try:
        if source in teachers:
            teacher = teachers[source]
            trunk = vit_of(_network_of(teacher), teacher.image_mean, teacher.image_std)
        else:
            trunk = open_vit(source)
    except UnknownTrunkError as error:
        raise RecipeError(
            f"`student.init_from` {source!r} is no ViT that a RADIO trunk can start from: {error}."
        ) from error
    if trunk is not None and student.config.num_mergings:
        raise RecipeError(
            f"`student.init_from` must be a RADIO checkpoint with `student.config.downscale_levels`, got {source!r}, a "
            "plain ViT. Start a student without mergings from it, and that with mergings from this student."
        )
    if trunk is not None:
        return fit_vit(student, trunk, source, blocks)
    return warm_start(student, open_source(source, student.config, blocks), source, blocks)


def _network_of(teacher: Teacher) -> object:
    network = dict(teacher.named_children()).get("network")
    if network is None:
        raise UnknownTrunkError(f"the teacher is a {type(teacher).__name__} without a network of its own")
    return network
