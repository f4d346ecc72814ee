"""Start of a student that is a network of timm or transformers from the weights that its library publishes."""

from typing import Any

import torch
from torch import nn

from modeling_radio import RadioModel
from modeling_radio.core.hub import explain_failure
from modeling_radio.training.recipe import RecipeError
from modeling_radio.training.student.warm_start.radio import WarmStart


LIBRARY_SOURCES = ("timm:", "transformers:")
"""Beginnings of `student.init_from` that name weights of a library."""


@torch.no_grad()
def start_network(student: RadioModel, source: str) -> WarmStart:
    """Copy a library's weights into the network of a student; its pool, projections and heads stay as they are.

    Args:
        student: Changed in place.
        source: "timm:NAME", with NAME as for `timm.create_model`, also "timm:local-dir:FOLDER"; or "transformers:NAME",
            with a Hub id or a folder.

    Raises:
        RecipeError: If the student is no network of that library, the weights do not open, or are of another shape.
    """
    library, _, name = source.partition(":")
    wrapped = student.config.wrapped or {}
    if wrapped.get("source") != library:
        raise RecipeError(f"`student.init_from` {source!r} needs a `student.architecture` of {library}.")
    try:
        given = _open(library, name, wrapped["arguments"]).state_dict()
    except Exception as error:  # a library may raise anything for a damaged or foreign checkpoint
        reason = explain_failure(error, name).rstrip(".")
        raise RecipeError(f"`student.init_from` {source!r} does not open: {reason}.") from error
    network = student.radio_model.model.network
    own = network.state_dict()
    others = [key for key in own if key not in given or given[key].shape != own[key].shape]
    if others:
        raise RecipeError(
            f"`student.init_from` {source!r} is another network than the student: {len(others)} of {len(own)} weights "
            f"are missing or have another shape, {others[0]!r} and such."
        )
    network.load_state_dict({key: given[key] for key in own})
    report = WarmStart(f"{source!r}, weights of {library}")
    report.taken.append("the network")
    report.added.append("heads of all teachers")
    left_out = [key for key in given if key not in own]
    report.left_out.extend([f"{len(left_out)} weights, {left_out[0]} and such"] if left_out else [])
    return report


def _open(library: str, name: str, arguments: dict[str, Any]) -> nn.Module:
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=True, num_classes=0, **arguments)
    from transformers import AutoModel

    return AutoModel.from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
