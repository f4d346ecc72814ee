"""Weights of NVIDIA's checkpoints: checked, brought to one data type, and folded.

Spectral reparametrization and LayerScale are folded into the linear layers, since native readers do not know them.
"""

import re
import warnings
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Data types that weights may have. 8-bit ones need scales, which NVIDIA's checkpoints do not have."""
_MAX_NAMES = 8
_COUNTERS = (".summary_idxs", "._sn_version", ".num_batches_tracked")  # the tensors that are whole numbers
MIN_SCALE = 0.05
"""Least spectral norm that RADIO's sigmaReparam can express (PHI-S, appendix A.7, https://arxiv.org/abs/2410.01680)."""
_PARAMETRIZED = re.compile(r"(?P<layer>.+)\.parametrizations\.weight\.(?P<part>.+)")
_SPECTRAL_PART = re.compile(r"0\.(?:parts\.\d+\.)?(?:scale|_u|_v|_sn_version)")
_LAYER_SCALE = re.compile(r"(?P<block>radio_model\.model\.blocks\.\d+)\.(?P<scale>ls[12])\.grandma")
_SCALED_LAYERS = {"ls1": ("attn.proj",), "ls2": ("mlp.fc2", "mlp.w3")}


def check_kinds(state: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other types than weights have: integers, for one, would be loaded as if they were weights.

    Args:
        state: Tensors under the file's own keys.

    Raises:
        ValueError: If any is complex, of integers or of 8 bits; all are named.
    """
    kinds: dict[torch.dtype, list[str]] = {}
    for key, tensor in state.items():
        is_whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
        if tensor.dtype not in FLOATS and not (is_whole and key.endswith(_COUNTERS)):
            kinds.setdefault(tensor.dtype, []).append(key)
    if kinds:
        found = "; ".join(f"{len(keys)} of type {dtype}: {_shortened(keys)}" for dtype, keys in kinds.items())
        raise ValueError(f"Weights must be floating-point numbers. The checkpoint has {found}.")


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
    """Return weights of one data type: the file's if it has one, else float32, with a warning.

    Args:
        state: Tensors under our keys; integers stay.
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


def spectral_epsilon(args: Mapping[str, object]) -> float:
    """Return the epsilon that is added to the spectral norm before the division."""
    settings = args.get("spectral_reparam")
    return float(settings.get("eps", 1e-12)) if isinstance(settings, dict) else 1e-6


def fold_spectral(state: Mapping[str, Tensor], epsilon: float = 1e-6) -> dict[str, Tensor]:
    """Replace each spectrally reparametrized weight by its effective value.

    sigmaReparam: w' = w * (softplus(s) + 0.05) / sigma(w), with sigma from the stored singular vectors after one step
    of power iteration. The qkv projection is split into three parts and SwiGLU's `w12` into two, each with its own
    norm; a part without one (the values, in some runs) stays as it is.

    Args:
        state: Weights; layers that are not reparametrized pass through.
        epsilon: Added to sigma.

    Returns:
        New weights. Other entries under `parametrizations` stay; the caller refuses them.

    Raises:
        ValueError: If a layer's scale comes without its singular vectors, or a tensor has no fitting shape.

    References:
        Zhai et al., https://arxiv.org/abs/2303.06296
    """
    folded: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = _PARAMETRIZED.fullmatch(key)
        if match is None:
            folded[key] = tensor
        elif match["part"] == "original":
            prefix = f"{match['layer']}.parametrizations.weight.0."
            folded[f"{match['layer']}.weight"] = _effective_weight(state, tensor, prefix, epsilon)
        elif not _SPECTRAL_PART.fullmatch(match["part"]):
            folded[key] = tensor
    return folded


def _effective_weight(state: Mapping[str, Tensor], weight: Tensor, prefix: str, epsilon: float) -> Tensor:
    if weight.ndim != 2:
        raise ValueError(
            f"`{prefix.removesuffix('0.')}original` must be a matrix, got the shape {tuple(weight.shape)}."
        )
    if not any(key.startswith(f"{prefix}parts.") for key in state):
        return _normalized(state, weight, prefix, epsilon)
    chunks = weight.chunk(3 if prefix.endswith("qkv.parametrizations.weight.0.") else 2)
    parts = [_normalized(state, chunk, f"{prefix}parts.{index}.", epsilon) for index, chunk in enumerate(chunks)]
    return torch.cat(parts)


def _normalized(state: Mapping[str, Tensor], weight: Tensor, prefix: str, epsilon: float) -> Tensor:
    if f"{prefix}scale" not in state:
        return weight
    missing = [f"{prefix}{name}" for name in ("_u", "_v") if f"{prefix}{name}" not in state]
    if missing:
        raise ValueError(f"Spectral reparametrization lacks {', '.join(missing)}.")
    _check_shape(f"{prefix}_v", state[f"{prefix}_v"], weight.shape[1:])
    # The first runs stored the norm itself and no version; some stored copies of it in further columns.
    scale = state[f"{prefix}scale"].flatten()[0].float()
    version = state.get(f"{prefix}_sn_version")
    if version is not None and int(version.flatten()[0]) >= 2:
        scale = F.softplus(scale) + MIN_SCALE
    # NVIDIA's loader folds a module in training mode, which takes one more step of the power iteration: published
    # outputs include that step.
    left = F.normalize(torch.mv(weight, state[f"{prefix}_v"]), dim=0, eps=epsilon)
    right = F.normalize(torch.mv(weight.T, left), dim=0, eps=epsilon)
    sigma = torch.dot(left, torch.mv(weight, right)) + epsilon
    return (weight * (scale / sigma.float())).to(weight.dtype)


def fold_layer_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply the backbone's LayerScale into the linear layers before it, in float32, and drop it.

    Attention heads of adaptors keep theirs: other readers read only the backbone.

    Args:
        state: Weights under our keys.

    Returns:
        New weights, in the data types of the old ones.

    Raises:
        ValueError: If a scale and the layer before it differ in width: broadcasting would hide that where one of them
            has one element.
    """
    folded = dict(state)
    for key, scale in state.items():
        match = _LAYER_SCALE.fullmatch(key)
        if match is None:
            continue
        del folded[key]
        for layer in _SCALED_LAYERS[match["scale"]]:
            weight, bias = (f"{match['block']}.{layer}.{kind}" for kind in ("weight", "bias"))
            for name in {weight, bias} & folded.keys():
                _check_shape(key, scale, folded[name].shape[:1])
            if weight in folded:
                folded[weight] = (folded[weight].float() * scale.float()[:, None]).to(folded[weight].dtype)
            if bias in folded:
                folded[bias] = (folded[bias].float() * scale.float()).to(folded[bias].dtype)
    return folded


def _check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"`{name}` must have the shape {tuple(shape)} of its layer, got {tuple(tensor.shape)}.")


def has_layer_scale(state: Mapping[str, Tensor]) -> bool:
    """True if the backbone has LayerScale."""
    return any(_LAYER_SCALE.fullmatch(key) for key in state)
