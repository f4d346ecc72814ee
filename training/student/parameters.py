"""Parameters of the student by part of the network, and a trunk that is not trained for now."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from modeling_radio import RadioModel
from modeling_radio.modeling_radio import ADAPTORS, DECODER_PREFIX, FILLERS, PATCH_GENERATOR, POSITIONS, PREFIX_TOKENS


STACKED_MATRICES = {"attn.qkv": 3, "mlp.w12": 2}
"""Linear layers of a block that hold several matrices of equal shape, one above the other: query, key and value; gate
and value of SwiGLU. Each has a spectral norm of its own, as in NVIDIA's inference code, and is a matrix to Muon."""


CLIPS = f"{PATCH_GENERATOR}.video_embedder.weight"
"""Where the projection of clips stands, of a network that has temporal patches."""


def freeze_projection_of_clips(model: nn.Module) -> None:
    """Freeze what images do not reach, where a network has it: DDP would wait for its gradient.

    Args:
        model: Around `radio_model`, changed in place.
    """
    for name, parameter in model.named_parameters():
        if name == CLIPS:
            parameter.requires_grad_(False)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay acts on a parameter: on matrices, but not on position table and tokens.

    The scales of a spectral reparametrization are matrices, so that they decay (PHI-S A.7). Positions and prefix tokens
    do not, as in AM-RADIO (https://arxiv.org/abs/2312.06709).
    """
    return parameter.ndim > 1 and not name.endswith((POSITIONS, PREFIX_TOKENS, DECODER_PREFIX, FILLERS))


TAPS = "taps"
STUDENT = "student"
"""Where a student with taps around it keeps the heads of its taps, and the student."""


def student_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield all parameters of a student, with taps around it or not, under the names of a student without."""
    for name, parameter in model.named_parameters():
        yield name.removeprefix(f"{STUDENT}."), parameter


def is_of_trunk(name: str) -> bool:
    """Return whether a parameter lies outside of all heads, which are adaptors and taps."""
    return not name.startswith((f"{ADAPTORS}.", f"{TAPS}."))


@contextlib.contextmanager
def frozen_trunk(student: RadioModel) -> Iterator[None]:
    """Build no graph below the adaptors in the student's passes within this context.

    The trunk's parameters are not marked, since DDP and FSDP look at these marks once, when they wrap the student.

    Args:
        student: Possibly wrapped, sharded or compiled; what the adaptors learn is not changed.
    """
    trunk = student.radio_model  # whose pass ends before the adaptors read it
    hooks = [trunk.register_forward_pre_hook(_stop_recording), trunk.register_forward_hook(_record, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stop_recording(*_: object) -> None:
    torch.set_grad_enabled(False)


def _record(*_: object) -> None:
    torch.set_grad_enabled(True)
