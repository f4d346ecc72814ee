"""Refuses weights that are no numbers of one kind, and brings those of several kinds to one."""

import re
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Data types that weights may have. 8-bit ones need scales that a checkpoint of NVIDIA's does not name."""
_MAX_NAMES = 8
_SMALL_BYTES = 2**20  # views that repeat what is stored, such as a scale, may be saved; large ones fill the memory
_PARAMETRIZATION = re.compile(r"\.parametrizations\.")  # the scales of spectral reparametrization are single numbers
_BATCHES = ".num_batches_tracked"  # of batch norms, a single number each
_COUNTERS = (".summary_idxs", "._sn_version", _BATCHES)  # the tensors that are whole numbers


def check_kinds(state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that no weight can be, before anything is computed with them.

    Args:
        state: Tensors under the file's own keys.

    Raises:
        ValueError: If any is sparse, quantized, without values, empty, a single number, complex, integer, of 8 bits,
            or larger than what is stored of it; all are named.
    """
    kinds: dict[str, list[str]] = {}
    for key, tensor in state.items():
        for kind in _strange_kinds(key, tensor):
            kinds.setdefault(kind, []).append(key)
    if kinds:
        found = "; ".join(f"{len(keys)} {kind}: {_shortened(keys)}" for kind, keys in kinds.items())
        raise ValueError(f"Weights must be dense tensors of floating-point numbers. The checkpoint has {found}.")


def _strange_kinds(key: str, tensor: Tensor) -> Iterator[str]:
    if tensor.device.type == "meta":
        yield "without values (on the meta device)"
    elif tensor.layout != torch.strided:
        yield "sparse"
    elif not tensor.numel():
        yield "empty"
    elif not tensor.ndim and not _PARAMETRIZATION.search(key) and not key.endswith(_BATCHES):
        yield "without dimensions"
    elif tensor.is_quantized or (tensor.dtype not in FLOATS and not _may_be_whole(key, tensor)):
        yield f"of type {tensor.dtype}"
    elif tensor.nbytes > max(tensor.untyped_storage().nbytes(), _SMALL_BYTES):
        yield "larger than what is stored of them"


def _may_be_whole(key: str, tensor: Tensor) -> bool:
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return whole and key.endswith(_COUNTERS)


def check_finite(state: Mapping[str, Tensor], source_keys: Mapping[str, str]) -> None:
    """Refuse weights with NaN or infinity.

    Args:
        state: Tensors under our keys.
        source_keys: The file's key of each, for the message.

    Raises:
        ValueError: If there are any; all are named.
    """
    broken = [source_keys.get(key, key) for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(
            f"Weights must be finite. {len(broken)} hold NaN or infinity: {_shortened(broken)}. The checkpoint is "
            "damaged, or of a run that diverged."
        )


def to_one_dtype(state: Mapping[str, Tensor], source_keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Return weights of one data type: the file's where it has one, else float32, with a warning.

    Args:
        state: Tensors under our keys; those of whole numbers stay.
        source_keys: The file's key of each, for the message.
    """
    groups: dict[torch.dtype, list[str]] = {}
    for key, tensor in state.items():
        if tensor.is_floating_point():
            groups.setdefault(tensor.dtype, []).append(source_keys.get(key, key))
    if len(groups) < 2:
        return dict(state)
    most = max(groups, key=lambda dtype: len(groups[dtype]))
    others = "; ".join(f"{dtype}: {_shortened(keys)}" for dtype, keys in groups.items() if dtype != most)
    warnings.warn(
        f"The weights are of several data types and were all written as float32: most are {most}, but {others}.",
        stacklevel=2,
    )
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def _shortened(keys: list[str]) -> str:
    more = f" and {len(keys) - _MAX_NAMES} more" if len(keys) > _MAX_NAMES else ""
    return ", ".join(keys[:_MAX_NAMES]) + more
