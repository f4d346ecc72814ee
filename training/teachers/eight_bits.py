"""Teachers whose blocks compute in 8 bits, by torchao; it is imported inside of functions, since few runs need it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modeling_radio.training.teachers.outputs import teacher_error


if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

    from modeling_radio.training.teachers.base import Teacher

SIDE_STEP = 16
"""Both sides of a matrix must be multiples of it for `torch._scaled_mm`; `torch._int_mm` is content with 8."""


def check_eight_bits(name: str, precision: str, device: torch.device | str) -> None:
    """Try one small layer, so that a device or a torchao without this precision is told before a network is loaded.

    Args:
        name: The teacher's, for the error.
        precision: "int8" or "fp8".
        device: Where the teacher will run.

    Raises:
        ValueError: With the reason that torchao or PyTorch gives.
    """
    try:
        layer = nn.Linear(SIDE_STEP, SIDE_STEP).to(device).requires_grad_(False)
        _quantize(layer, precision)
        layer(torch.ones(2 * SIDE_STEP, SIDE_STEP, device=device))
    except (ImportError, AssertionError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        remedy = "Run `pip install torchao`" if isinstance(error, ImportError) else "Use 'bfloat16'"
        message = f"`precision` {precision!r} cannot be used on {str(device)!r}: {reason}. {remedy}."
        raise teacher_error(name, message) from error


def quantize_blocks(teacher: Teacher, precision: str) -> None:
    """Let the linear layers of a teacher's blocks compute in 8 bits.

    Each row of a weight has a scale, and so has each token of an input, in each pass. Layers before and after the
    blocks stay as they are, since targets come from them. So do those whose sides are no multiples of `SIDE_STEP`, and
    subclasses of `nn.Linear`, whose weights other modules read. A network that teachers share is quantized once.

    Args:
        teacher: On the device where it runs.
        precision: "int8" or "fp8".

    Raises:
        ValueError: If there is no such layer, or the device or torchao lacks the precision.
    """
    check_eight_bits(teacher.name, precision, teacher.mean.device)
    layers = eight_bit_layers(teacher)
    if not layers:
        raise teacher_error(
            teacher.name,
            f"`precision` must be 'float32' or 'bfloat16', got {precision!r}: its network has no list of blocks of one "
            f"class with linear layers whose sides are multiples of {SIDE_STEP}.",
        )
    for layer in layers:
        if not _is_quantized(layer):
            _quantize(layer, precision)


def eight_bit_layers(teacher: Teacher) -> list[nn.Linear]:
    """Return the layers that `quantize_blocks` takes."""
    return [layer for layer in _linear_layers(teacher) if _fits(layer)]


def describe_blocks(teacher: Teacher) -> str:
    """Return a line for the log about the layers that compute in 8 bits."""
    layers = _linear_layers(teacher)
    return (
        f"Teacher {teacher.name}: {sum(map(_is_quantized, layers))} of the {len(layers)} linear layers in its blocks "
        f"compute in {teacher.run.precision}, all else in bfloat16."
    )


def _linear_layers(teacher: Teacher) -> Collection[nn.Linear]:
    return {layer for block in teacher.repeated_blocks() for layer in block.modules() if isinstance(layer, nn.Linear)}


def _fits(layer: nn.Linear) -> bool:
    return type(layer) is nn.Linear and not (layer.in_features % SIDE_STEP or layer.out_features % SIDE_STEP)


def _is_quantized(layer: nn.Linear) -> bool:
    return type(layer.weight.data) is not Tensor


def _quantize(layer: nn.Linear, precision: str) -> None:
    """Quantize a layer, which from then on casts its input to bfloat16: autocast does not do so for torchao."""
    from torchao.quantization import quantize_

    quantize_(layer.to(torch.bfloat16), _config(precision))
    layer.register_forward_pre_hook(_to_bfloat16)


def _config(precision: str) -> AOBaseConfig:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
    )

    if precision == "int8":
        return Int8DynamicActivationInt8WeightConfig()
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def _to_bfloat16(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.to(torch.bfloat16) for each in inputs)
