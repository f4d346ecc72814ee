"""Parameters of the student by part of the network, and a trunk that is frozen for a while."""

import contextlib
import fnmatch
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from modeling_radio import RadioModel
from modeling_radio.modeling_radio import ADAPTORS, DECODER_PREFIX, FILLERS, PATCH_GENERATOR, POSITIONS, PREFIX_TOKENS
from modeling_radio.wrapped_radio import WrappedTrunk


STACKED_MATRICES = {"qkv": 3, "kv": 2, "w12": 2}
"""Linear layers, by the last part of their names, that hold several matrices of equal shape, one above the other:
query, key and value; key and value; gate and value of SwiGLU. Each has a spectral norm of its own, as in NVIDIA's
inference code, and is a matrix to Muon."""

CLIPS = f"{PATCH_GENERATOR}.video_embedder.weight"
"""The projection of clips, in networks with temporal patches."""

SUMMARY_QUERIES = "radio_model.model.pool.queries"
"""The learned queries that stand for class tokens in a wrapped network without one."""


def freeze_projection_of_clips(model: nn.Module) -> None:
    """Freeze the projection of clips, if any: images give it no gradient, and DDP would wait for one.

    Args:
        model: A module with a `radio_model`, changed in place.
    """
    for name, parameter in model.named_parameters():
        if name == CLIPS:
            parameter.requires_grad_(False)


def count_stacked(name: str, num_rows: int) -> int:
    """Return how many matrices a linear layer holds, see `STACKED_MATRICES`.

    Args:
        name: Name of the layer or of its weight.
        num_rows: Outputs of the layer.
    """
    count = next((count for layer, count in STACKED_MATRICES.items() if f".{layer}." in f".{name}."), 1)
    return count if num_rows % count == 0 else 1


def decayed_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that weight decay acts on: matrices, but not position tables and tokens.

    The scales of a spectral reparametrization are matrices, so that they decay (PHI-S A.7). Positions and prefix tokens
    do not, as in AM-RADIO (https://arxiv.org/abs/2312.06709). In a library's network only weights of layers decay,
    except embeddings, layer norms and parameters that its `no_weight_decay()` names.

    Args:
        model: A student, or a model around one.
    """
    tokens = (POSITIONS, PREFIX_TOKENS, DECODER_PREFIX, FILLERS, SUMMARY_QUERIES, ".cls_token", ".attn_pool.tgt")
    decayed = {each for name, each in model.named_parameters() if each.ndim > 1 and not name.endswith(tokens)}
    for trunk in model.modules():
        if isinstance(trunk, WrappedTrunk):
            decayed.difference_update(_undecayed(trunk.network))
    return decayed


def _undecayed(network: Any) -> Iterator[nn.Parameter]:
    """Yield the parameters of a library's network that do not decay."""
    patterns = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    for name, parameter in network.named_parameters():
        owner, _, own = name.rpartition(".")
        is_weight = own.endswith("weight") and not isinstance(
            network.get_submodule(owner), (nn.Embedding, nn.LayerNorm, nn.RMSNorm)
        )
        is_named = any(fnmatch.fnmatch(name, pattern) for pattern in patterns)  # as timm reads them
        if is_named or not (is_weight or ".parametrizations.weight." in name):
            yield parameter


def student_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield all parameters of a student or of a module with the attribute `student`; the student's by its own names."""
    for name, parameter in model.named_parameters():
        yield re.sub(r"^(student\.)+", "", name), parameter


def is_of_trunk(name: str) -> bool:
    """Return whether a parameter is in no head: neither in an adaptor nor in a module around the student."""
    return name.startswith("radio_model.") and not name.startswith(f"{ADAPTORS}.")


@contextlib.contextmanager
def frozen_trunk(student: RadioModel) -> Iterator[None]:
    """Build no graph below the adaptors in the student's forward passes within this context.

    The trunk's parameters stay trainable: DDP and FSDP look at `requires_grad` once, when they wrap the student.

    Args:
        student: Possibly wrapped, sharded or compiled; gradients of the adaptors stay the same.
    """
    trunk = student.radio_model  # its forward pass ends before the adaptors
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
